//! `rehearse table`: what each step took, what it would take in the whole experiment, and whether its memory kept to the budget.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::builder::{StringValueParser, TypedValueParser};
use pipe::stdout::print as put;
use pipe::text::{bytes, duration, table};

use crate::measure::Line;

/// Print what the steps in a log took, beside what they would take in the whole experiment
///
/// The last two columns are those of the rehearsal times the work of the experiment over the work of the rehearsal: rows, steps and
/// pixels. That includes the time in which models are loaded, which is spent once, so that short steps look slower than they will be; and
/// attention takes more than its share of pixels, so that `train` and `sample` may take longer.
#[derive(clap::Args)]
pub struct Args {
    /// The output of `rehearse run`
    #[arg(value_name = "LOG")]
    log: PathBuf,
    /// The counts of the rehearsal: pairs, prompts, images (per prompt), steps, batch (pairs per step), checkpoints (on the
    /// disk at once), sample-steps, and resolution (pixels of a side)
    #[arg(long, value_name = "NAME=N,...", value_parser = StringValueParser::new().try_map(numbers))]
    here: Numbers,
    /// The same counts of the experiment
    #[arg(long, value_name = "NAME=N,...", value_parser = StringValueParser::new().try_map(numbers))]
    paper: Numbers,
    /// Gigabytes of memory that a program may take
    #[arg(long, value_name = "PROGRAM=GB,...", value_parser = StringValueParser::new().try_map(numbers))]
    budget: Numbers,
}

const NOTE: &str = "\nin full: times the rows, steps and pixels of the experiment over those here; loading is scaled \
    as well, although it happens once\n";

type Numbers = BTreeMap<String, f64>;

fn numbers(text: String) -> Result<Numbers> {
    let one = |pair: &str| {
        let (name, number) = pair.split_once('=').with_context(|| format!("{pair} is not NAME=NUMBER"))?;
        let number: f64 = number.trim().parse().with_context(|| format!("{pair}: {number} is not a number"))?;
        if number.is_finite() && number > 0.0 {
            Ok((name.trim().to_owned(), number))
        } else {
            bail!("{pair} is not above 0")
        }
    };
    text.split(',').filter(|pair| !pair.trim().is_empty()).map(one).collect()
}

/// The counts on which a step's time depends, and those on which its size on the disk does.
fn depends(tool: &str, output: &str) -> [&'static [&'static str]; 2] {
    match (tool, output.split('/').next()) {
        ("encode", _) => [&["pairs", "resolution", "resolution"]; 2],
        ("train", _) => [&["steps", "batch", "resolution", "resolution"], &["checkpoints"]],
        ("sample", _) => [
            &["prompts", "images", "sample-steps", "resolution", "resolution"],
            &["prompts", "images", "resolution", "resolution"],
        ],
        ("score", Some("scored")) | ("winrate" | "report", _) => [&["prompts", "images"]; 2],
        ("prompts", _) => [&["prompts"]; 2],
        _ => [&["pairs"]; 2],
    }
}

pub fn print(args: &Args) -> Result<ExitCode> {
    let lines = read(args)?;
    let mut rows = vec![
        ["step", "time", "processor", "memory", "budget", "written", "in full: time", "written"]
            .map(String::from)
            .to_vec(),
    ];
    let (mut over, mut failed) = (vec![], vec![]);
    let mut sums = [0.0; 5];
    for line in &lines {
        let step = format!("{} {}", line.tool, line.output).trim_end().to_owned();
        let budget = args.budget.get(&line.tool);
        if budget.is_some_and(|budget| line.peak_bytes as f64 > budget * 1e9) {
            over.push(step.clone());
        }
        if line.exit_code != 0 {
            failed.push(format!("{step} (exit code {})", line.exit_code));
        }
        let [time, size] = depends(&line.tool, &line.output).map(|names| factor(args, names));
        let full = [line.seconds * time?, line.written_bytes as f64 * size?];
        let all = [line.seconds, line.processor_seconds, line.written_bytes as f64, full[0], full[1]];
        sums.iter_mut().zip(all).for_each(|(sum, x)| *sum += x);
        let (memory, budget) = (bytes(line.peak_bytes), budget.map_or("-".into(), |gb| format!("{gb} GB")));
        rows.push(row(step, all, memory, budget));
    }
    rows.push(row("all".into(), sums, String::new(), String::new()));
    put(table(&rows, 1))?;
    put(NOTE)?;
    for (what, steps) in
        [("more memory than its budget", &over), ("failed", &failed)].iter().filter(|(_, steps)| !steps.is_empty())
    {
        put(format!("\n{what}: {}\n", steps.join(", ")))?;
    }
    Ok(ExitCode::from(u8::from(!(over.is_empty() && failed.is_empty()))))
}

fn row(
    step: String,
    [seconds, processor, written, time, size]: [f64; 5],
    memory: String,
    budget: String,
) -> Vec<String> {
    vec![
        step,
        duration(seconds),
        duration(processor),
        memory,
        budget,
        bytes(written as u64),
        duration(time),
        bytes(size as u64),
    ]
}

/// The last line of each step, in the order in which the steps were first taken.
fn read(args: &Args) -> Result<Vec<Line>> {
    let name = args.log.display();
    let text = std::fs::read_to_string(&args.log).with_context(|| format!("cannot read {name}"))?;
    let mut lines: Vec<Line> = vec![];
    for (i, text) in text.lines().enumerate() {
        let line: Line = serde_json::from_str(text).with_context(|| format!("{name}, line {}, is damaged", i + 1))?;
        match lines.iter_mut().find(|other| other.tool == line.tool && other.output == line.output) {
            Some(before) => *before = line,
            None => lines.push(line),
        }
    }
    Ok(lines)
}

/// How many times the work of the rehearsal the whole experiment is.
fn factor(args: &Args, names: &[&str]) -> Result<f64> {
    let one = |name: &&str| {
        let of = |flag: &str, all: &Numbers| all.get(*name).copied().with_context(|| format!("--{flag} lacks {name}"));
        Ok(of("paper", &args.paper)? / of("here", &args.here)?)
    };
    names.iter().map(one).product()
}
