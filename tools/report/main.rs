//! report: shows on one page what alignment changed: win rates, training, scores, votes and the images themselves.
//!
//!   report --winrates winrate.json --images base.parquet policy.parquet --scored base-scored.parquet policy-scored.parquet -o report.html
//!   report --images base.parquet dpo.parquet balanced.parquet --sheet sheet.png --prompts 20 --k 3

mod agreement;
mod args;
mod assemble;
mod bars;
mod beside;
mod card;
mod choose;
mod curves;
mod embed;
mod font;
mod gallery;
mod histograms;
mod images;
mod model_table;
mod models;
mod origins;
mod page;
mod pictures;
mod plot;
mod profile;
mod results;
mod sheet;
mod table;
mod watch;
mod winrates;

use std::alloc::System;
use std::{path::Path, process::ExitCode};

use anyhow::{Result, ensure};
use pipe::cli::{self, Answer};
use pipe::memory::Memory;
use pipe::{atomic, place, stdout::print};

use args::Args;
use beside::Beside;
use images::ModelImages;
use sheet::Sheet;

#[global_allocator]
static MEMORY: Memory = Memory(System);

fn main() -> ExitCode {
    cli::run("report", run)
}

fn run(args: Args) -> Result<Answer> {
    if let Some(folder) = &args.watch {
        return watch::serve(&args, folder).map(|()| Answer::Yes);
    }
    ensure!(
        args.outputs().next().is_some(),
        "no output was named; add `-o report.html` for the page, `--sheet sheet.png` for a contact sheet or `--card README.md` for a \
         model card"
    );
    let read = [&args.winrates, &args.images, &args.scored, &args.logs, &args.labels];
    let written: Vec<&Path> = args.outputs().map(|path| &**path).collect();
    place::refuse_overlaps(&written, read.into_iter().flatten())?;
    let beside = args.beside()?;
    let tables = ModelImages::open_all(&args.images)?;
    if let Some(path) = &args.sheet {
        let sheet = match &args.seeds_of {
            Some(prompt) => Sheet::of_seeds(&tables, prompt)?,
            None => Sheet::of_prompts(&tables, args.prompts.unwrap_or(12) as usize, args.k)?,
        };
        write(path, &sheet.png(args.scale.into())?)?;
    }
    if let Some(path) = &args.common.output {
        write(path, assemble::html(&args, &tables, beside.as_ref())?.as_bytes())?;
        beside.map_or(Ok(()), Beside::prune)?;
    }
    if let Some(path) = &args.card.card {
        let sheet = args.sheet.as_ref().and_then(|sheet| card::link(path, sheet));
        if let (None, Some(outside)) = (&sheet, &args.sheet) {
            args.common.say(format_args!(
                "the card does not show --sheet {}, which does not lie in the card's folder",
                outside.display()
            ));
        }
        let card = card::markdown(&args.card, args.title.as_deref(), &args.winrates, sheet.as_deref())?;
        write(path, card.as_bytes())?;
    }
    let written: Vec<_> = args.outputs().filter(|path| path.as_os_str() != "-").collect();
    match args.common.json {
        true => args.common.answer(serde_json::json!({ "written": written }))?,
        false => written.iter().for_each(|path| args.common.say(format_args!("wrote {}", path.display()))),
    }
    Ok(Answer::Yes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.as_os_str() == "-" { print(bytes) } else { atomic::write(path, bytes) }
}
