//! check: whether files and folders are complete, what they are, what made them and what is missing.
//!
//!   check labels.parquet policy/
//!   check -q parts/ && vote parts/ -o labels.parquet

mod finding;
mod folders;
mod lists;
mod look;
mod pictures;
mod tables;
mod texts;
mod weights;

use std::alloc::System;
use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::Parser;
use finding::{Finding, How};
use pipe::cli::{Answer, Common, complain, run};
use pipe::memory::Memory;
use pipe::stdout::print;
use serde_json::json;

/// Check whether files and folders are complete; print what they are, what made them and what is missing
///
/// Knows every table (also in parts), folders of `encode`, checkpoints of `train`, models as diffusers and transformers store
/// them, single weight files, log.jsonl, the JSON of `winrate`, files of settings, pages and cards of `report`, images, and lists, whose
/// images must be there.
/// In another folder it looks at everything that it knows. All rows are read, and checksums are compared where a file has them;
/// images inside tables are not decoded. It is to these files what `samtools quickcheck`
/// and `samtools view -H` are to BAM files.
#[derive(Parser)]
#[command(name = "check", version, max_term_width = 100, after_help = EXAMPLES)]
#[command(mut_args(|arg| match arg.get_id().as_str() { "output" | "seed" | "threads" => arg.hide(true), _ => arg }))]
struct Args {
    /// Files and folders, or hub ids of models in the hub's cache
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Read only headers and footers: enough to find files that are cut off and parts that are missing
    #[arg(long)]
    quick: bool,
    /// Folder in which relative paths of a list's images begin [default: that of the list]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  check scores.parquet labels.parquet policy/
  check -q parts/ && vote parts/ -o labels.parquet
  check --quick --json *.parquet | jq '.files[] | select(.whole | not)'

Exit status: 0 all are whole, 1 one is not or is of an unknown kind, 2 trouble.";

#[global_allocator]
static MEMORY: Memory = Memory(System);

fn main() -> ExitCode {
    run("check", check)
}

fn check(args: Args) -> Result<Answer> {
    let (mut findings, mut trouble) = (vec![], false);
    let how = How { quick: args.quick, root: args.root.as_deref() };
    for file in &args.files {
        match look::of(file, how) {
            Ok(finding) => {
                if !args.common.json && !args.common.quiet {
                    print(finding.text())?;
                }
                findings.push(finding);
            }
            // The others are checked all the same.
            Err(error) => {
                complain("check", &error);
                trouble = true;
            }
        }
    }
    let whole = findings.iter().all(Finding::is_whole);
    if args.common.json {
        let files: Vec<_> = findings.iter().map(Finding::json).collect();
        print(format!("{}\n", json!({ "whole": whole && !trouble, "files": files })))?;
    }
    ensure!(!trouble, "not everything could be read");
    Ok(if whole { Answer::Yes } else { Answer::No })
}
