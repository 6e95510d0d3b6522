//! report: shows what models drew for the same prompts, side by side.
//!
//!   report --images base.parquet policy.parquet --sheet sheet.png
//!   report --images base.parquet dpo.parquet balanced.parquet --sheet sheet.png --prompts 20 --k 3

mod drawn;
mod sheet;
mod text;

use std::{collections::HashSet, io::Write, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use pipe::{
    atomic,
    cli::{self, Answer, Common},
};

use drawn::{Drawn, Key, name};
use sheet::{Row, Sheet};

/// Show what models drew for the same prompts, side by side
///
/// Draws a contact sheet: one prompt a row, one model a column. The prompts are spread evenly over their sets, and the same
/// tables give the same sheet.
#[derive(Parser)]
#[command(name = "report", version, max_term_width = 100, after_help = EXAMPLES)]
struct Args {
    /// Images tables of the same prompts, one a model, in the order of the columns
    #[arg(long, required = true, num_args = 1.., value_name = "TABLE")]
    images: Vec<PathBuf>,
    /// Where to write the contact sheet, a PNG (`-`: standard output)
    #[arg(long, value_name = "PATH")]
    sheet: Option<PathBuf>,
    /// Rows of the sheet
    #[arg(long, value_name = "N", default_value = "12", value_parser = clap::value_parser!(u32).range(1..))]
    prompts: u32,
    /// Which of a prompt's images, from 0
    #[arg(long, value_name = "K", default_value_t = 0)]
    k: u64,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  report --images base.parquet policy.parquet --sheet sheet.png
  report --images base.parquet dpo.parquet balanced.parquet --sheet sheet.png --prompts 20 --k 3

Exit status: 0 done, 2 trouble.";

fn main() -> ExitCode {
    cli::run("report", run)
}

fn run(args: Args) -> Result<Answer> {
    let Some(path) = args.sheet.as_ref().filter(|_| args.common.output.is_none()) else {
        bail!(
            "there is no HTML report yet; what there is today is a contact sheet: `report --images TABLE... --sheet sheet.png`"
        )
    };
    args.common.refuse_shard("a sheet shows prompts of the whole tables")?;
    let tables = args.images.iter().map(|path| Drawn::open(path, args.k)).collect::<Result<Vec<_>>>()?;
    let prompts = common_prompts(&tables)?;
    let shown = spread(prompts, args.prompts as usize);
    let row = |(key, text): &(Key, String)| -> Result<Row> {
        let pictures = tables.iter().map(|t| t.picture(key)).collect::<Result<_>>()?;
        Ok(Row { prompt: text.clone(), set: key.0.clone(), pictures })
    };
    let same_noise = shown.iter().all(|(key, _)| tables.iter().all(|t| t.seed(key) == tables[0].seed(key)));
    let noise = if same_noise && tables.len() > 1 { ", from the same noise in each row" } else { "" };
    let sheet = Sheet {
        models: tables.iter().map(|t| head(t, &tables)).collect(),
        rows: shown.iter().copied().map(row).collect::<Result<_>>()?,
        note: format!("image {} of {} of {} prompts{noise}", args.k, shown.len(), prompts.len()),
    };
    let png = sheet.png()?;
    match path.as_os_str() == "-" {
        true => std::io::stdout().write_all(&png).context("cannot write the sheet")?,
        false => atomic::write(path, &png)?,
    }
    Ok(Answer::Yes)
}

/// The prompts, which all tables must have.
fn common_prompts(tables: &[Drawn]) -> Result<&[(Key, String)]> {
    let first = &tables[0];
    for other in &tables[1..] {
        for (has, lacks) in [(first, other), (other, first)] {
            if let Some((key, text)) = has.prompts.iter().find(|(key, _)| !lacks.has(key)) {
                bail!(
                    "prompt {} is in {} but not in {}; a sheet needs the same prompts: sample every model from one prompts table",
                    name(key, text),
                    has.table,
                    lacks.table
                );
            }
        }
    }
    ensure!(!first.prompts.is_empty(), "{} has no rows", first.table);
    Ok(&first.prompts)
}

/// `n` prompts, as many of each set as of any other where there are enough, and evenly spaced within it.
fn spread(prompts: &[(Key, String)], n: usize) -> Vec<&(Key, String)> {
    let mut sets: Vec<Vec<&(Key, String)>> = vec![];
    for prompt in prompts {
        match sets.iter_mut().find(|set| set[0].0.0 == prompt.0.0) {
            Some(set) => set.push(prompt),
            None => sets.push(vec![prompt]),
        }
    }
    let mut share = vec![0; sets.len()];
    for _ in 0..n.min(prompts.len()) {
        let room = (0..sets.len()).filter(|&s| share[s] < sets[s].len());
        if let Some(least) = room.min_by_key(|&s| share[s]) {
            share[least] += 1;
        }
    }
    let evenly = |(set, share): (&Vec<&'_ (Key, String)>, usize)| -> Vec<usize> {
        (0..share).map(|i| (2 * i + 1) * set.len() / (2 * share)).collect()
    };
    let picked = sets.iter().zip(share).flat_map(|(set, share)| evenly((set, share)).into_iter().map(|i| set[i]));
    picked.collect()
}

/// A model's name; with the table's where two models are called the same.
fn head(table: &Drawn, all: &[Drawn]) -> String {
    let names: HashSet<&str> = all.iter().map(|t| t.model.as_str()).collect();
    if names.len() == all.len() { table.model.clone() } else { format!("{} ({})", table.model, table.table) }
}
