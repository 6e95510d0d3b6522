//! rehearse: models with random weights, pairs and prompts as they are published, and measurements, for `make rehearse`.
//!
//!   rehearse models runs/rehearsal/sd15/data --base sd15
//!   rehearse run --log measured.jsonl -- sample prompts.parquet --base sd15 -o images.parquet
//!   rehearse table measured.jsonl --here pairs=4,... --paper pairs=959040,... --budget train=20,score=15

mod configs;
mod data;
mod measure;
mod models;
mod numbers;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use pipe::cli::{complain, exit_code};

/// Rehearse an experiment at full size, with random weights
///
/// `make rehearse X=sd15` uses the three commands below: it makes the data folder of the experiment, runs every step of `make reproduce`
/// on it, and prints what each step took. The images are noise. Memory, disk space, file formats and the time per row are those of
/// the published models.
#[derive(Parser)]
#[command(
    name = "rehearse",
    version,
    max_term_width = 100,
    after_help = "Exit status: 0 done, 1 a step failed or took more memory than its budget, 2 trouble. `run` exits with its command's status."
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Models(models::Args),
    Run(measure::Args),
    Table(table::Args),
}

fn main() -> ExitCode {
    let work = || -> Result<ExitCode> {
        match Args::parse().command {
            Command::Models(args) => models::make(&args).map(|()| ExitCode::SUCCESS),
            Command::Run(args) => measure::run(&args),
            Command::Table(args) => table::print(&args),
        }
    };
    work().unwrap_or_else(|error| {
        complain("rehearse", &error);
        ExitCode::from(exit_code(&error))
    })
}
