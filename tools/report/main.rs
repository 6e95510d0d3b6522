//! report: shows what alignment changed: win rates, training, scores, votes and the images themselves, on one page.
//!
//!   report --winrates winrate.json --images base.parquet policy.parquet --scored base-scored.parquet policy-scored.parquet -o report.html
//!   report --images base.parquet dpo.parquet balanced.parquet --sheet sheet.png --prompts 20 --k 3

mod agreement;
mod bars;
mod cast;
mod choose;
mod curves;
mod drawn;
mod embed;
mod gallery;
mod histograms;
mod made;
mod page;
mod plot;
mod profile;
mod scored;
mod sheet;
mod text;
mod whole;
mod winrates;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use clap::Parser;
use pipe::{
    atomic,
    cli::{self, Answer, Common},
    place,
    stdout::print,
};

use drawn::Drawn;
use sheet::Sheet;

/// Show what alignment changed: win rates, training, scores, votes and the images themselves
///
/// With `-o` it writes one HTML file that needs no network and no server: win rates with their intervals, all models over all
/// metrics, histograms of the scores before and after, training curves, who agrees with whom, and a gallery of the same prompts
/// drawn by every model, to sort and to filter. Each part is there when its files are named. With `--sheet` it draws a contact
/// sheet for papers: one prompt a row, one model a column. The same files give the same bytes.
#[derive(Parser)]
#[command(name = "report", version, max_term_width = 100, after_help = EXAMPLES)]
struct Args {
    /// What `winrate --json` wrote
    #[arg(long, num_args = 1.., value_name = "FILE")]
    winrates: Vec<PathBuf>,
    /// Images tables of the same prompts, one a model, in the order of the columns; several of one model go by their file names
    #[arg(long, num_args = 1.., value_name = "TABLE")]
    images: Vec<PathBuf>,
    /// Scored tables, one a model; with --images, one of each images table
    #[arg(long, num_args = 1.., value_name = "TABLE")]
    scored: Vec<PathBuf>,
    /// log.jsonl of runs of `train`; a run is called after its folder, or as the images whose table has the folder's name
    #[arg(long, num_args = 1.., value_name = "FILE")]
    logs: Vec<PathBuf>,
    /// Labels tables; who agrees with whom is counted from their votes, and each table's label is a voter too, called after the file
    #[arg(long, num_args = 1.., value_name = "TABLE")]
    labels: Vec<PathBuf>,
    /// What `vote --json` printed; who agrees with whom is taken from it
    #[arg(long, num_args = 1.., value_name = "FILE")]
    votes: Vec<PathBuf>,
    /// The model that the others are compared with [default: the last baseline of the win rates, else the first table's]
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Heading of the page [default: the models' names]
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// A remark that stands below the heading
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// The page's size at most, in MB of a million bytes; images are made smaller until it holds
    #[arg(long, value_name = "MB", default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    max_mb: u32,
    /// Where to write the contact sheet, a PNG (`-`: standard output)
    #[arg(long, value_name = "PATH", requires = "images")]
    sheet: Option<PathBuf>,
    /// Prompts that are shown, spread evenly over their sets [default: 12 on the sheet, 240 in the gallery]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prompts: Option<u32>,
    /// Which of a prompt's images, from 0; the gallery holds the others too
    #[arg(long, value_name = "K", default_value_t = 0)]
    k: u64,
    /// The sheet shows all images of this one prompt: an image a column, a model a row
    #[arg(long, value_name = "TEXT", requires = "sheet")]
    seeds_of: Option<String>,
    /// How many times larger the sheet is drawn, letters too; 3 prints sharply across a page
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    scale: u8,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  report --winrates winrate.json --logs policy/log.jsonl -o report.html
  report --images base.parquet policy.parquet --scored base-scored.parquet policy-scored.parquet \\
         --labels labels.parquet --winrates winrate.json --logs policy/log.jsonl -o report.html
  report --images base.parquet policy.parquet --sheet sheet.png
  report --images base.parquet dpo.parquet balanced.parquet --sheet sheet.png --prompts 20 --k 3 --scale 3
  report --images base.parquet policy.parquet --sheet seeds.png --seeds-of 'a raccoon in a top hat'

Exit status: 0 done, 2 trouble.";

fn main() -> ExitCode {
    cli::run("report", run)
}

fn run(args: Args) -> Result<Answer> {
    ensure!(
        args.sheet.is_some() || args.common.output.is_some(),
        "no output was named; `-o report.html` writes the page, `--sheet sheet.png` a contact sheet"
    );
    let read = [&args.winrates, &args.images, &args.scored, &args.logs, &args.labels, &args.votes];
    for written in args.sheet.iter().chain(&args.common.output) {
        place::refuse_inputs(written, read.into_iter().flatten())?;
    }
    let mut tables = args.images.iter().map(|path| Drawn::open(path)).collect::<Result<Vec<_>>>()?;
    drawn::by_file(tables.iter_mut().map(|t| (&mut t.model, t.table.as_str())));
    if let Some(path) = &args.sheet {
        let sheet = match &args.seeds_of {
            Some(prompt) => Sheet::of_seeds(&tables, prompt)?,
            None => Sheet::of_prompts(&tables, args.prompts.unwrap_or(12) as usize, args.k)?,
        };
        write(path, &sheet.png(args.scale.into())?)?;
    }
    if let Some(path) = &args.common.output {
        write(path, whole::html(&args, &tables)?.as_bytes())?;
    }
    Ok(Answer::Yes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    match path.as_os_str() == "-" {
        true => print(bytes),
        false => atomic::write(path, bytes),
    }
}
