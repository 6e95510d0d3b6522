//! The command-line frame: shared flags, one place for errors and exit codes.

use std::{
    ffi::OsString,
    marker::PhantomData,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Error, Result, bail};
use clap::{
    Arg, Command, Parser,
    builder::{PathBufValueParser, PossibleValue, PossibleValuesParser, StringValueParser, TypedValueParser},
};

use crate::{
    device::{Device, Dtype},
    names::Names,
    place,
    shard::{self, Shard},
    stop::Stopped,
    table::is_url,
};

/// What a tool answers: exit code 0 or 1. Trouble is an `Err`, exit code 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
}

/// The flags that every tool understands.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Where to write: a path, or `-` for standard output
    #[arg(short, long, alias = "output-dir", value_name = "PATH", value_parser = PathBufValueParser::new().map(or_stdout))]
    pub output: Option<PathBuf>,
    /// Worker threads [default: one a core]; no result depends on it
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Seed of every random draw
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// No progress, no summary on standard error
    #[arg(short, long)]
    pub quiet: bool,
    /// Print summaries as JSON, numbers unrounded
    #[arg(long)]
    pub json: bool,
}

impl Common {
    /// The output path, or an error that says which flag is missing.
    pub fn output(&self) -> Result<&PathBuf> {
        match &self.output {
            Some(url) if is_url(url) => {
                bail!("cannot write {}: objects are only read; write a file and copy it there", url.display())
            }
            Some(path) => Ok(path),
            None => bail!("no output was named; add `-o PATH`, or `-o -` to write to a pipe"),
        }
    }

    /// The output path, which must not be one of the `inputs` or a file in a folder among them.
    ///
    /// # Errors
    /// It is; or no output was named.
    pub fn output_beside<P: AsRef<Path>>(&self, inputs: impl IntoIterator<Item = P>) -> Result<&PathBuf> {
        let output = self.output()?;
        place::refuse_inputs(output, inputs)?;
        Ok(output)
    }

    /// A message for a person, on standard error, unless `-q`.
    pub fn say(&self, message: impl std::fmt::Display) {
        if !self.quiet {
            // A closed standard error is no reason to fail.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{message}\n"));
        }
    }
}

/// The flags of tools that run networks.
#[derive(clap::Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Common options")]
pub struct Networks {
    /// Where networks run
    #[arg(long, default_value_t = Device::Cpu, value_parser = named::<Device>())]
    pub device: Device,
    /// What networks compute in; the CPU computes in f32 only
    #[arg(long, default_value_t = Dtype::F32, value_parser = named::<Dtype>())]
    pub dtype: Dtype,
}

/// The flag of tools whose work splits by rows.
#[derive(clap::Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Common options")]
pub struct Sharding {
    /// Process only the I-th of N contiguous row ranges over all inputs (I from 0); the output is then a folder of parts
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
}

impl Sharding {
    /// The output path, a folder under `--shard`. Neither it nor the part that is written is one of the `inputs`.
    ///
    /// # Errors
    /// One of them is; or no output was named.
    pub fn output_beside<'a, P>(
        &self,
        common: &'a Common,
        inputs: impl IntoIterator<Item = P> + Clone,
    ) -> Result<&'a PathBuf>
    where
        P: AsRef<Path>,
    {
        let output = common.output_beside(inputs.clone())?;
        place::refuse_inputs(&shard::target(output, self.shard), inputs)?;
        Ok(output)
    }
}

/// The parser of a flag whose type owns its names; `--help` and errors list them.
///
/// `#[arg(long, value_parser = named::<Dtype>())] dtype: Dtype`
pub fn named<T: Names + Clone + Send + Sync + 'static>() -> impl TypedValueParser<Value = T> {
    Named(PhantomData)
}

#[derive(Clone)]
struct Named<T>(PhantomData<T>);

impl<T: Names + Clone + Send + Sync + 'static> TypedValueParser for Named<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &std::ffi::OsStr) -> Result<T, clap::Error> {
        // A name that is known may be followed by something wrong, of which its type says more than a list does.
        let known = value.to_str().is_some_and(|value| T::FORMS.iter().any(|form| form.is_named_by(value)));
        let parse = |text: String| text.parse::<T>();
        match known {
            true => StringValueParser::new().try_map(parse).parse_ref(command, arg, value),
            false => PossibleValuesParser::new(possible::<T>()).try_map(parse).parse_ref(command, arg, value),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(possible::<T>()))
    }
}

fn possible<T: Names>() -> impl Iterator<Item = PossibleValue> {
    T::FORMS.iter().map(|form| {
        let value = PossibleValue::new(form.form).aliases(form.aliases);
        match form.help.trim().trim_end_matches('.') {
            "" => value,
            help => value.help(help),
        }
    })
}

/// `/dev/stdout` is `-` by another name.
fn or_stdout(output: PathBuf) -> PathBuf {
    if output.as_os_str() == "/dev/stdout" { "-".into() } else { output }
}

/// Parses the command line, runs the tool, and turns its result into an exit code:
/// 0 done, 1 the answer is no, 2 trouble. A reader that closed the pipe early got what it wanted: 0, silently.
///
/// Of a flag given twice the last one holds, as with Python's argparse: a script has its settings, and its user one more.
pub fn run<A: Parser>(tool: &str, body: impl FnOnce(A) -> Result<Answer>) -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().map(dashes).collect();
    if let Some(threads) = threads_of(&args) {
        // Rayon and candle both read this variable, once, when first used.
        // SAFETY: nothing else has started a thread yet.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", threads) };
    }
    let matches = A::command().args_override_self(true).get_matches_from(args);
    match body(A::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut A::command()).exit())) {
        Ok(Answer::Yes) => ExitCode::from(0),
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) => {
            complain(tool, &error);
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Says what is wrong, on standard error.
pub fn complain(tool: &str, error: &Error) {
    if !is_broken_pipe(error) {
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{tool}: {}\n", sentence(error)));
    }
}

/// The exit code of a tool that ends with this error.
pub fn exit_code(error: &Error) -> u8 {
    match error.downcast_ref::<Stopped>() {
        Some(stopped) => 128 + stopped.0,
        None if is_broken_pipe(error) => 0,
        None => 2,
    }
}

/// `--max_train_steps` and `--max-train-steps` are the same flag, so that a Diffusion-DPO launch line can be pasted.
fn dashes(arg: OsString) -> OsString {
    let Some(text) = arg.to_str().filter(|t| t.starts_with("--") && t.len() > 2) else { return arg };
    match text.split_once('=') {
        Some((flag, value)) => format!("{}={value}", flag.replace('_', "-")).into(),
        None => text.replace('_', "-").into(),
    }
}

/// What `--threads` will say, the last one as everywhere; a bad number is for clap to complain of.
fn threads_of(args: &[OsString]) -> Option<String> {
    let (mut args, mut threads) = (args.iter().filter_map(|a| a.to_str()), None);
    while let Some(arg) = args.next() {
        let value = match arg.split_once('=') {
            Some(("--threads", value)) => Some(value),
            _ if arg == "--threads" => args.next(),
            _ => None,
        };
        threads = value.filter(|v| v.parse::<NonZeroUsize>().is_ok()).map(str::to_owned).or(threads);
    }
    threads
}

/// The whole chain of causes on one line, the first of each (candle puts a backtrace below), without the repetitions that
/// wrapped errors bring.
fn sentence(error: &Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = cause.trim().lines().next().unwrap_or_default();
        if !text.contains(cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(cause);
        }
    }
    text
}

/// Arrow and Parquet wrap I/O errors, some of them as text only.
pub fn is_broken_pipe(error: &Error) -> bool {
    error.chain().any(|cause| {
        let kind = match cause.downcast_ref::<std::io::Error>() {
            Some(io) => Some(io.kind()),
            None => match cause.downcast_ref::<arrow::error::ArrowError>() {
                Some(arrow::error::ArrowError::IoError(_, io)) => Some(io.kind()),
                _ => None,
            },
        };
        kind == Some(std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underscores_in_flags_only() {
        assert_eq!(dashes("--max_train_steps=a_b".into()), OsString::from("--max-train-steps=a_b"));
        assert_eq!(dashes("out_dir".into()), OsString::from("out_dir"));
        assert_eq!(dashes("--".into()), OsString::from("--"));
    }

    #[test]
    fn the_last_number_of_threads_holds() {
        let threads = |line: &str| threads_of(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(threads("score --threads 2 pairs --threads=3 -q").as_deref(), Some("3"));
        assert_eq!(threads("score pairs"), None);
    }
}
