//! pairs: makes one pairs table from whatever people keep their preferences in.
//!
//!   pairs my-images/list.csv -o pairs.parquet
//!   pairs HPDv3/train.json --root HPDv3 -o hpdv3.parquet --max 10000

mod folder;
mod labels;
mod pair;
mod record;
mod source;

use std::alloc::System;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::{process::ExitCode, sync::Arc};

use anyhow::{Result, bail, ensure};
use arrow::array::{ArrayRef, BinaryArray, Float32Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::SchemaRef;
use clap::Parser;
use pipe::cli::{self, Answer, Common, named};
use pipe::image_column::ImageColumn;
use pipe::memory::Memory;
use pipe::origin::{InputOrigin, Origin};
use pipe::text::count;
use pipe::{id, schema, table};
use serde_json::json;

use crate::labels::Labels;
use crate::pair::{Pair, Reader, Renamed};
use crate::record::Record;

/// Make one pairs table from whatever people keep their preferences in
///
/// Reads, recognised by the content:
///
/// * lists in JSON, lines of JSON, CSV or TSV: `prompt`, `winner` and `loser` (or `chosen` and `rejected`, `path1` and `path2` as in
///   HPDv3), or `image_0`, `image_1` and `label_0`, or as in HPDv2 `image_path` with `human_preference` or `rank`. Images are paths;
///
/// * folders with such a list in them, or with two folders of images of the same names (w/ and l/, winner/ and loser/, chosen/
///   and rejected/) and a caption in NAME.txt;
///
/// * tables (Parquet, Arrow) with images inside: Pick-a-Pic, open-image-preferences (`chosen`, `rejected`), your own;
///
/// * webdataset's .tar archives.
///
/// Other names of fields are given with --columns. In pairs of a winner and a loser, image 0 is the winner and `label_0` is 1. Images
/// are copied as they are; only a few are held at a time.
#[derive(Parser)]
#[command(name = "pairs", version, max_term_width = 100, after_help = EXAMPLES)]
#[command(mut_arg("seed", |seed| seed.hide(true)))] // nothing is drawn
struct Args {
    /// Files, folders, or `-` for an Arrow stream
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    /// Make an images table, for `score`, of single images: a folder of x.png and x.txt, or lists and tables with `prompt` and
    /// `image` or `file_name`
    #[arg(long)]
    images: bool,
    /// Which fields are what, separated by commas: caption, jpg_0, jpg_1, label_0, winner, loser, image
    #[arg(long, value_name = "ROLE=FIELD,...", value_delimiter = ',')]
    columns: Vec<Renamed>,
    /// Folder in which relative paths of images begin [default: that of the list]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Skip samples without a caption, or whose images are missing or not JPEG, PNG or WebP; print how many
    #[arg(long, help_heading = "Details")]
    skip_bad: bool,
    /// Stop after N rows
    #[arg(long, value_name = "N")]
    max: Option<NonZeroUsize>,
    /// Name of the model, for column `model` of an images table [default: the name of the source]
    #[arg(long, help_heading = "Details", value_name = "NAME", requires = "images")]
    name: Option<String>,
    /// Labels table of these pairs: its labels take the place of the sources' own, and pairs that it does not decide are left out
    #[arg(long, help_heading = "Details", value_name = "TABLE", conflicts_with = "images")]
    labels: Option<PathBuf>,
    /// The columns that are written
    #[arg(long, help_heading = "Details", default_value_t = Layout::PickAPic, value_parser = named::<Layout>(), conflicts_with = "images")]
    layout: Layout,
    /// How images are written
    #[arg(long, help_heading = "Details", default_value_t = ImageColumn::Bytes, value_parser = named::<ImageColumn>())]
    image_column: ImageColumn,
    #[command(flatten)]
    common: Common,
}

pipe::names! {
    /// The columns of a pairs table.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Layout {
        /// Pick-a-Pic's, which Diffusion-DPO, diffusers' scripts and all programs here read
        PickAPic = "pick-a-pic",
        /// `prompt`, `chosen` and `rejected`, as TRL and open-image-preferences have them; undecided pairs are left out
        Trl = "trl",
    }
}

const EXAMPLES: &str = "\
Examples:
  pairs my-images/list.csv -o pairs.parquet
  pairs my-images/ -o pairs.parquet
  pairs HPDv2/train.json --root HPDv2/train -o hpdv2.parquet --skip-bad
  pairs HPDv3/train.json -o hpdv3.parquet --max 10000
  pairs open-image-preferences-v1-binarized/ -o oip.parquet
  pairs shard-00000.tar shard-00001.tar -o wds.parquet
  pairs mine.jsonl -o out.parquet \\
        --columns caption=query,winner=good,loser=bad
  pairs --images photos/ -o images.parquet
  pairs pairs.parquet --labels labels.parquet --layout trl \\
        --image-column datasets -o trl.parquet

Exit status: 0 done, 2 trouble.";

#[global_allocator]
static MEMORY: Memory = Memory(System);

fn main() -> ExitCode {
    cli::run("pairs", run)
}

/// Rows that are written together.
const BATCH: usize = 16;

/// A thing to read, and where relative paths in it begin.
enum Source {
    File(PathBuf),
    Sides(PathBuf, [PathBuf; 2]),
    Singles(PathBuf),
}

impl Source {
    /// The source that the user named: several files, if it is a folder of them.
    fn all(path: &Path, images: bool) -> Result<Vec<Self>> {
        let files = source::files(path)?;
        match folder::sides(path)?.filter(|_| !images) {
            Some(sides) => {
                if let Some(list) = files.first() {
                    bail!(
                        "{} holds folders of images, and the list {}: keep one of them there",
                        path.display(),
                        list.display()
                    );
                }
                Ok(vec![Self::Sides(path.to_owned(), sides)])
            }
            None if files.is_empty() && images => Ok(vec![Self::Singles(path.to_owned())]),
            None if files.is_empty() => Err(source::nothing_in(path)),
            None => Ok(files.into_iter().map(Self::File).collect()),
        }
    }

    /// Where relative paths begin.
    fn root(&self) -> &Path {
        match self {
            Self::File(file) => file.parent().unwrap_or(Path::new("")),
            Self::Sides(folder, _) | Self::Singles(folder) => folder,
        }
    }

    /// Hands every record to `take`. Returns whether more records are wanted.
    fn read(&self, reader: &Reader, take: &mut source::Take) -> Result<bool> {
        match self {
            Self::File(file) => source::read(file, reader, take),
            Self::Sides(folder, sides) => folder::pairs(folder, sides, reader, take),
            Self::Singles(folder) => folder::singles(folder, reader, take),
        }
    }

    fn origins(&self) -> Result<Vec<InputOrigin>> {
        match self {
            Self::File(file) => source::origins(file),
            _ => Ok(vec![InputOrigin { sha256: None, origin: None }]),
        }
    }
}

fn run(args: Args) -> Result<Answer> {
    let common = &args.common;
    let output = common.output_beside(args.sources.iter().chain(&args.root).chain(&args.labels))?;
    let sources: Vec<Vec<Source>> =
        args.sources.iter().map(|path| Source::all(path, args.images)).collect::<Result<_>>()?;
    let mut origin = Origin::new("pairs");
    if args.images {
        origin = origin.arg("images", true);
    }
    if let Some(max) = args.max {
        origin = origin.arg("max", max.get());
    }
    for source in sources.iter().flatten() {
        origin = origin.inputs(source.origins()?);
    }
    if let Some(labels) = &args.labels {
        origin = origin.inputs(source::origins(labels)?);
    }

    let mut writer = Writer::create(&args, output, &origin)?;
    for (path, sources) in args.sources.iter().zip(&sources) {
        let stem = path.file_stem().map_or_else(|| "images".into(), |stem| stem.to_string_lossy().into_owned());
        writer.name = args.name.clone().unwrap_or(stem);
        for source in sources {
            let root = args.root.as_deref().unwrap_or(source.root()).to_owned();
            let reader = Reader { renamed: args.columns.clone(), root, output: output.to_owned() };
            if !source.read(&reader, &mut |reader, record| writer.take(reader, record))? {
                break;
            }
        }
    }
    let Counts { rows, skipped, undecided, unlabelled } = writer.finish()?;
    let what = if args.images { "image" } else { "pair" };
    ensure!(rows > 0, "no {what} was found in {}", args.sources[0].display());
    if common.json {
        common.answer(
            json!({ format!("{what}s"): rows, "skipped": skipped, "undecided": undecided, "unlabelled": unlabelled }),
        )?;
    } else {
        let mut line = count(rows, what);
        for (left_out, what) in [(skipped, "bad sample"), (undecided, "undecided pair")] {
            if left_out > 0 {
                line += &format!(", without {}", count(left_out, what));
            }
        }
        if unlabelled > 0 {
            line += &format!(", {unlabelled} without a label (1, 0 or 0.5 in `label_0`, or --columns label_0=NAME)");
        }
        common.say(line);
    }
    Ok(Answer::Yes)
}

/// The table that is written, and the rows that wait for it.
struct Writer<'a> {
    args: &'a Args,
    output: table::Output,
    /// The schema of the rows, with images as bytes.
    plain: SchemaRef,
    pairs: Vec<Pair>,
    singles: Vec<Single>,
    /// How many images each prompt has so far.
    seen: HashMap<id::Key, u32>,
    labels: Option<Labels>,
    counts: Counts,
    /// The model of single images.
    name: String,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    rows: usize,
    /// Records that could not be read.
    skipped: usize,
    /// Pairs that no label decides.
    undecided: usize,
    /// Pairs that are written without a label.
    unlabelled: usize,
}

struct Single {
    prompt: String,
    image: Vec<u8>,
    k: u32,
    model: String,
}

impl<'a> Writer<'a> {
    fn create(args: &'a Args, output: &Path, origin: &Origin) -> Result<Self> {
        let schema = match (args.images, args.layout) {
            (true, _) => schema::images(),
            (false, Layout::PickAPic) => schema::pairs(),
            (false, Layout::Trl) => schema::preferences(),
        };
        let plain = Arc::new(schema.clone());
        let output = table::Output::create(output, args.image_column.schema(schema), origin)?;
        Ok(Self {
            args,
            output,
            plain,
            pairs: vec![],
            singles: vec![],
            seen: HashMap::new(),
            labels: args.labels.as_deref().map(Labels::read).transpose()?,
            counts: Counts::default(),
            name: String::new(),
        })
    }

    /// Takes the rows of a record, or what is wrong with it. Returns whether more are wanted.
    fn take(&mut self, reader: &Reader, record: Result<Record>) -> Result<bool> {
        let max = self.args.max.map_or(usize::MAX, NonZeroUsize::get);
        let taken = record.and_then(|record| match self.args.images {
            true => self.take_single(reader, &record),
            false => self.take_pairs(reader, &record, max),
        });
        match taken {
            Err(_) if self.args.skip_bad => self.counts.skipped += 1,
            taken => taken?,
        }
        if self.pairs.len() + self.singles.len() >= BATCH {
            self.write()?;
        }
        Ok(self.counts.rows < max)
    }

    fn take_pairs(&mut self, reader: &Reader, record: &Record, max: usize) -> Result<()> {
        let read = reader.pairs(record)?;
        let all = read.len();
        let labelled = read.into_iter().filter_map(|pair| match &self.labels {
            Some(labels) => labels.apply(pair),
            None => Some(pair),
        });
        let decided =
            |pair: &Pair| self.args.layout == Layout::PickAPic || pair.label.is_some_and(|label| label != 0.5);
        let mut found: Vec<Pair> = labelled.filter(decided).collect();
        self.counts.undecided += all - found.len();
        found.truncate(max - self.counts.rows);
        self.counts.rows += found.len();
        self.counts.unlabelled += found.iter().filter(|pair| pair.label.is_none()).count();
        self.pairs.extend(found);
        Ok(())
    }

    fn take_single(&mut self, reader: &Reader, record: &Record) -> Result<()> {
        let (prompt, image) = (reader.caption(record)?, reader.image(record)?);
        let next = self.seen.entry(id::key(&[prompt.as_bytes()])).or_default();
        self.singles.push(Single { prompt, image, k: *next, model: self.name.clone() });
        *next += 1;
        self.counts.rows += 1;
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let columns = match (self.args.images, self.args.layout) {
            (true, _) => image_columns(&self.singles),
            (false, Layout::PickAPic) => pair_columns(&self.pairs),
            (false, Layout::Trl) => preference_columns(&self.pairs),
        };
        let batch = RecordBatch::try_new(self.plain.clone(), columns)?;
        self.output.write(&self.args.image_column.batch(batch, &self.output.schema)?)?;
        self.pairs.clear();
        self.singles.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Counts> {
        self.write()?;
        if self.counts.rows > 0 {
            self.output.finish()?;
        }
        Ok(self.counts)
    }
}

fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

fn pair_columns(pairs: &[Pair]) -> Vec<ArrayRef> {
    let uid =
        |side: usize| -> ArrayRef { Arc::new(StringArray::from_iter_values(pairs.iter().map(|pair| pair.uid(side)))) };
    let image = |side: usize| -> ArrayRef {
        Arc::new(BinaryArray::from_iter_values(pairs.iter().map(|pair| &pair.images[side])))
    };
    let label = |of: fn(f32) -> f32| -> ArrayRef {
        Arc::new(pairs.iter().map(|pair| pair.label.map(of)).collect::<Float32Array>())
    };
    let model = |side: usize| texts(pairs.iter().map(move |pair| pair.models[side].as_deref()));
    vec![
        texts(pairs.iter().map(|pair| Some(&*pair.caption))),
        uid(0),
        uid(1),
        image(0),
        image(1),
        label(|label| label),
        label(|label| 1.0 - label),
        model(0),
        model(1),
        texts(pairs.iter().map(|pair| pair.ranking.as_deref())),
    ]
}

fn preference_columns(pairs: &[Pair]) -> Vec<ArrayRef> {
    let image = |preferred: bool| -> ArrayRef {
        let side = |pair: &Pair| usize::from((pair.label > Some(0.5)) != preferred);
        Arc::new(BinaryArray::from_iter_values(pairs.iter().map(|pair| &pair.images[side(pair)])))
    };
    vec![texts(pairs.iter().map(|pair| Some(&*pair.caption))), image(true), image(false)]
}

fn image_columns(singles: &[Single]) -> Vec<ArrayRef> {
    let own = |value: &dyn Fn(&Single) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(singles.iter().map(value)))
    };
    let none = || -> ArrayRef { Arc::new(StringArray::new_null(singles.len())) };
    vec![
        own(&|single| id::prompt_id(&single.prompt)),
        own(&|single| single.prompt.clone()),
        none(),
        none(),
        none(),
        own(&|single| id::image_uid(&single.image)),
        Arc::new(UInt32Array::from_iter_values(singles.iter().map(|single| single.k))),
        Arc::new(UInt64Array::from(vec![0; singles.len()])), // their noise is unknown
        own(&|single| single.model.clone()),
        Arc::new(BinaryArray::from_iter_values(singles.iter().map(|single| &single.image))),
    ]
}
