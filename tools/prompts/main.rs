//! prompts: makes one prompts table from whatever a benchmark publishes.
//!
//!   prompts PartiPrompts.tsv -o partiprompts.parquet
//!   prompts anime.json photo.json drawbench.txt -o safe.parquet --safe inappropriate_text_classifier/ --max 400

mod safe;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, Result, bail};
use arrow::array::{ArrayRef, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;
use clap::Parser;
use pipe::cli::{self, Answer, Common};
use pipe::memory::Memory;
use pipe::prompt_source::{self, Counts, Prompt};
use pipe::text::{self, shown};
use pipe::{origin::Origin, schema, table};
use safe::Safe;
use serde_json::{Map, Value, json};

/// Make one prompts table from whatever a benchmark publishes
///
/// Reads CSV and TSV with a header (PartiPrompts), JSON (an array of strings as HPSv2's, or of objects with `prompt` as HPD v2's
/// and ImageReward's), text with one prompt per line, and tables with a column `prompt`, `prompts` or `caption` (Pick-a-Pic),
/// whether in capitals or not. The columns `set`, `category` and `challenge` are kept. The format
/// is recognised by the content, not by the name. The order is kept, and each text is kept once per set.
#[derive(Parser)]
#[command(name = "prompts", version, max_term_width = 100, after_help = EXAMPLES)]
#[command(mut_arg("seed", |seed| seed.hide(true)))] // nothing is drawn
struct Args {
    /// Files, folders of parts, or `-`
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    /// Name of the set, for all sources [default: the table's own, else the file's name without its extension]
    ///
    /// `winrate` prints its rates set by set.
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
    /// Keep only the prompts of these sets, separated by commas
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only_set: Vec<String>,
    /// Keep only the first N prompts, counted after duplicates and unsafe prompts are removed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max: Option<u32>,
    #[command(flatten)]
    safe: Safe,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  prompts PartiPrompts.tsv -o partiprompts.parquet
  prompts anime.json photo.json -o hpsv2.parquet --set hpsv2
  prompts prompts.parquet -o reported.parquet --only-set seen,unseen-pair
  prompts PartiPrompts.tsv -o safe.parquet \\
          --safe inappropriate_text_classifier/ --threshold 0.5
  prompts pairs.parquet -o - | sample - --base sd15/ -o images.parquet -n 5

Exit status: 0 done, 2 trouble.";

#[cfg(feature = "nets")]
#[global_allocator]
static MEMORY: Memory<ops::Pool> = Memory(ops::Pool);
#[cfg(not(feature = "nets"))]
#[global_allocator]
static MEMORY: Memory = Memory(std::alloc::System);

fn main() -> ExitCode {
    cli::run("prompts", run)
}

fn run(args: Args) -> Result<Answer> {
    let common = &args.common;
    let output = common.output_beside(&args.sources)?;
    let mut source = prompt_source::read(&args.sources, args.set.as_deref())?;
    let other_sets = keep_sets(&mut source.prompts, &args.only_set)?;
    let max = args.max.map_or(usize::MAX, |max| max as usize);
    let filtered = match &args.safe.safe {
        Some(folder) => Some(safe::filter(&mut source.prompts, max, folder, &args.safe, common.quiet)?),
        None => None,
    };
    let beyond_max = match &filtered {
        Some(filtered) => filtered.beyond_max,
        None => source.prompts.len().saturating_sub(max),
    };
    source.prompts.truncate(max);
    for set in args.only_set.iter().filter(|set| source.prompts.iter().all(|p| p.set != **set)) {
        common.say(format!("prompts: warning: no prompt of the set '{}' is among the first {max}", shown(set)));
    }

    let mut origin = Origin::new("prompts");
    if let Some(set) = &args.set {
        origin = origin.arg("set", set.as_str());
    }
    if !args.only_set.is_empty() {
        origin = origin.arg("only_set", args.only_set.clone());
    }
    if let Some(max) = args.max {
        origin = origin.arg("max", max);
    }
    if let Some(filtered) = &filtered {
        origin = origin.arg("threshold", args.safe.threshold).model("safe", format!("sha256:{}", filtered.model));
    }
    let mut table = table::Output::create(output, schema::prompts(), &origin.inputs(source.origins))?;
    let schema = table.schema.clone();
    for some in source.prompts.chunks(table::BATCH) {
        table.write(&batch(&schema, some)?)?;
    }
    table.finish()?;
    let left = Left { other_sets, dropped: filtered.map(|f| f.dropped), beyond_max };
    tell(common, &source.prompts, source.counts, left)
}

/// Keeps the prompts of `sets` (all if none is named) and returns how many others there were.
fn keep_sets(prompts: &mut Vec<Prompt>, sets: &[String]) -> Result<usize> {
    let found = prompts.len();
    if sets.is_empty() {
        return Ok(0);
    }
    if let Some(unknown) = sets.iter().find(|set| prompts.iter().all(|p| p.set != **set)) {
        let mut there: Vec<&str> = vec![];
        for prompt in prompts.iter() {
            if !there.contains(&prompt.set.as_str()) {
                there.push(&prompt.set);
            }
        }
        let there: Vec<_> = there.into_iter().map(shown).collect();
        bail!("--only-set: there is no set '{}' (there are: {})", shown(unknown), there.join(", "));
    }
    prompts.retain(|p| sets.contains(&p.set));
    Ok(found - prompts.len())
}

struct Left {
    other_sets: usize,
    /// Under `--safe`.
    dropped: Option<usize>,
    beyond_max: usize,
}

fn batch(schema: &SchemaRef, prompts: &[Prompt]) -> Result<RecordBatch> {
    let needed =
        |value: fn(&Prompt) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(prompts.iter().map(value))) };
    let optional = |value: fn(&Prompt) -> Option<&str>| -> ArrayRef {
        Arc::new(prompts.iter().map(value).collect::<StringArray>())
    };
    let columns = vec![
        needed(|p| &p.prompt_id),
        needed(|p| &p.prompt),
        needed(|p| &p.set),
        optional(|p| p.category.as_deref()),
        optional(|p| p.challenge.as_deref()),
        Arc::new(prompts.iter().map(|p| p.nsfw_prob).collect::<Float32Array>()),
    ];
    RecordBatch::try_new(schema.clone(), columns).context("cannot make a table of the prompts")
}

fn tell(common: &Common, prompts: &[Prompt], counts: Counts, left: Left) -> Result<Answer> {
    let mut sets: Vec<(&str, usize)> = vec![];
    for prompt in prompts {
        match sets.iter_mut().rfind(|(set, _)| *set == prompt.set) {
            Some((_, n)) => *n += 1,
            None => sets.push((&prompt.set, 1)),
        }
    }
    if common.json {
        let sets: Map<String, Value> = sets.iter().map(|&(set, n)| (set.to_owned(), n.into())).collect();
        let Counts { read, blank, duplicates } = counts;
        let mut line = json!({
            "prompts": prompts.len(), "sets": sets, "read": read, "blank": blank, "duplicates": duplicates,
            "other_sets": left.other_sets, "beyond_max": left.beyond_max,
        });
        if let Some(dropped) = left.dropped {
            line["kept"] = prompts.len().into();
            line["dropped"] = dropped.into();
        }
        common.answer(line)?;
        return Ok(Answer::Yes);
    }
    let mut line = text::count(prompts.len(), "prompt");
    for (left_out, what, why) in [
        (counts.duplicates, "duplicate", ""),
        (counts.blank, "blank line", ""),
        (left.other_sets, "prompt", " of other sets"),
        (left.dropped.unwrap_or(0), "prompt", " that are not safe"),
        (left.beyond_max, "prompt", " beyond --max"),
    ] {
        if left_out > 0 {
            line += &format!(", without {}{why}", text::count(left_out, what));
        }
    }
    let sets: Vec<_> = sets.iter().map(|&(set, n)| vec![format!("  {set}"), text::thousands(n)]).collect();
    common.say(format!("{line}\n{}", text::table(&sets, 1).trim_end()));
    Ok(Answer::Yes)
}
