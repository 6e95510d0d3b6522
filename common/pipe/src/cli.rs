//! The frame of every command line: shared flags, the parser of names, errors and exit codes.

mod config;
mod effective;
mod foreign;
mod generate;
mod paste;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{marker::PhantomData, num::NonZeroUsize, process::ExitCode};

use anyhow::{Context, Error, Result, bail};
use clap::builder::{PathBufValueParser, PossibleValue, PossibleValuesParser, StringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command, Parser};

use crate::device::{Device, Dtype};
use crate::shard::{self, Shard};
use crate::stdout::{print, reader_left};
use crate::stop::{self, Stopped};
use crate::{memory, names::Names, panics, place, scratch, shown};
pub use effective::Settings;
use generate::Generate;

/// The heading of the flags that all tools share.
const COMMON: &str = "Common options";

/// The answer of a tool: exit code 0 or 1. An error is exit code 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
}

/// The flags that every tool accepts.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = COMMON)]
pub struct Common {
    /// Where to write: a path, or `-` for standard output
    #[arg(help_heading = None, short, long, alias = "output-dir", value_name = "PATH", value_parser = PathBufValueParser::new().try_map(writable))]
    pub output: Option<PathBuf>,
    /// Worker threads [default: one per core]; results do not depend on it
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,
    /// Seed of every random draw
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Print no progress and no summary on standard error
    #[arg(short, long)]
    pub quiet: bool,
    /// Print summaries as JSON, with unrounded numbers
    #[arg(long)]
    pub json: bool,
    /// Read settings from a TOML file, whose keys are the names of flags; what the command line says wins, and `--FLAG=false`
    /// unsets a switch of the file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings of this command line as a file for --config, and do nothing else. A launch line of Diffusion-DPO's,
    /// diffusers' or kohya's scripts may follow
    #[arg(long)]
    pub print_config: bool,
    /// Print a man page, or the completions of a shell, and do nothing else
    #[arg(long, value_name = "WHAT", value_parser = named::<Generate>())]
    pub generate: Option<Generate>,
}

impl Common {
    pub fn output(&self) -> Result<&PathBuf> {
        match &self.output {
            Some(path) => Ok(path),
            None => bail!("no output was named; add `-o PATH`, or `-o -` to write to a pipe"),
        }
    }

    /// The output path, which must not be one of the `inputs` or a file in a folder among them.
    pub fn output_beside<P: AsRef<Path>>(&self, inputs: impl IntoIterator<Item = P>) -> Result<&PathBuf> {
        let output = self.output()?;
        place::refuse_inputs(output, inputs)?;
        Ok(output)
    }

    /// A message for a person, on standard error, unless `-q`.
    pub fn say(&self, message: impl std::fmt::Display) {
        if !self.quiet {
            // If standard error is closed, the work continues all the same.
            let message = shown::message(&message.to_string());
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{message}\n"));
        }
    }

    /// Prints the answer of `--json` on standard output; on standard error, and not under `-q`, if the table goes to standard
    /// output.
    pub fn answer(&self, json: impl std::fmt::Display) -> Result<()> {
        if self.output.as_ref().is_some_and(|output| output.as_os_str() == "-") {
            self.say(json);
            return Ok(());
        }
        print(format!("{json}\n"))
    }
}

/// The flags of tools that run networks.
#[derive(clap::Args, Clone, Copy, Debug)]
#[command(next_help_heading = COMMON)]
pub struct Networks {
    /// Where networks run
    #[arg(long, default_value_t = Device::Cpu, value_parser = named::<Device>())]
    pub device: Device,
    /// Number format in which networks compute; the CPU computes in f32 only
    #[arg(long, default_value_t = Dtype::F32, value_parser = named::<Dtype>())]
    pub dtype: Dtype,
}

/// The flag of tools that read models.
#[derive(clap::Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Models")]
pub struct Hub {
    /// Download models that are named by a hub id (org/name[@revision]) and are not in the cache
    #[arg(long)]
    pub allow_download: bool,
}

impl Hub {
    /// The folder of a model, by `nets::hub::resolve`. Where that may not download, an error names the flag.
    pub fn folder(&self, model: &Path, resolve: impl Fn(&Path, bool) -> Result<PathBuf>) -> Result<PathBuf> {
        let folder = resolve(model, self.allow_download);
        if self.allow_download { folder } else { folder.context("models are downloaded with --allow-download only") }
    }
}

/// The flags of tools that read diffusion models.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Models")]
pub struct Diffusion {
    #[command(flatten)]
    hub: Hub,
    /// Folder or hub id whose config.json files describe models in one file (.safetensors, .ckpt) [default: the base, if it
    /// is a folder; otherwise detected from the tensors (Stable Diffusion 1, 2, XL); other models need the folder]
    #[arg(long, value_name = "DIR")]
    base_config: Option<PathBuf>,
}

impl Diffusion {
    /// The folder of a model, by `nets::hub::resolve`, or by `nets::single::folder` where it is one file. `base` describes it unless
    /// --base-config does.
    pub fn folder(
        &self,
        model: &Path,
        base: Option<&Path>,
        resolve: impl Fn(&Path, bool) -> Result<PathBuf>,
        unpack: impl Fn(&Path, Option<&Path>) -> Result<PathBuf>,
    ) -> Result<PathBuf> {
        let path = self.hub.folder(model, &resolve)?;
        let named = self.base_config.as_ref().map(|folder| self.hub.folder(folder, &resolve)).transpose()?;
        if !path.is_file() {
            return Ok(path);
        }
        let unpacked = unpack(&path, named.as_deref().or(base));
        if named.is_some() { unpacked } else { unpacked.context("another kind of model needs --base-config") }
    }
}

/// The flag of tools whose work splits by rows.
#[derive(clap::Args, Clone, Copy, Debug)]
#[command(next_help_heading = COMMON)]
pub struct Sharding {
    /// Process only the I-th of N contiguous row ranges over all inputs (I from 0); the output is then a folder of parts
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
}

impl Sharding {
    /// The output path, a folder under `--shard`. Neither it nor the part that is written is one of the `inputs`.
    pub fn output_beside<'a, P>(
        &self,
        common: &'a Common,
        inputs: impl IntoIterator<Item = P> + Clone,
    ) -> Result<&'a PathBuf>
    where
        P: AsRef<Path>,
    {
        let output = common.output_beside(inputs.clone())?;
        if self.shard.is_some() && place::is_stream(output) {
            bail!("--shard writes a part into a folder; name a folder with -o instead of {}", output.display());
        }
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

/// The parser of a number that `fits`; `must` says what it must be, as in "a number above 0".
pub fn number(must: &'static str, fits: fn(f64) -> bool) -> impl TypedValueParser<Value = f64> {
    move |text: &str| match text.parse() {
        Ok(x) if fits(x) => Ok(x),
        _ => Err(format!("it must be {must}")),
    }
}

/// The parser of a finite number that is not below 0.
pub fn not_negative() -> impl TypedValueParser<Value = f64> {
    number("a number not below 0", |x| x >= 0.0 && x.is_finite())
}

pub fn share() -> impl TypedValueParser<Value = f64> {
    number("a number from 0 to 1", |x| (0.0..=1.0).contains(&x))
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

/// A number of threads: 1 to 1024, which is more than a machine has cores. Each takes memory and time to start.
fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse().ok().filter(|n: &NonZeroUsize| n.get() <= 1024);
    number.ok_or_else(|| "the number of threads is 1 to 1024".into())
}

/// A path that can be written; `/dev/stdout` is another name of `-`.
fn writable(output: PathBuf) -> Result<PathBuf> {
    place::refuse_url(&output)?;
    Ok(if output.as_os_str() == "/dev/stdout" { "-".into() } else { output })
}

/// Parses the command line, runs the tool, and turns its result into an exit code: 0 done, 1 the answer is no, 2 trouble. A reader
/// that closes our standard output early has what it wanted: 0, silently.
///
/// If a flag is repeated, the last value wins, as with Python's argparse: a script can hold settings and its user change one.
///
/// A panic anywhere ends as an error does. A file that grows beyond the limit of `ulimit -f` is an error of that file.
pub fn run<A: Parser>(tool: &'static str, body: impl FnOnce(A) -> Result<Answer>) -> ExitCode {
    run_with_settings(tool, |args, _| body(args))
}

/// As [`run`], for a tool that keeps the settings of its run.
pub fn run_with_settings<A: Parser>(tool: &'static str, body: impl FnOnce(A, Settings) -> Result<Answer>) -> ExitCode {
    memory::of(tool);
    panics::silence();
    let command = A::command().args_override_self(true).mut_args(with_underscores);
    let result = stop::ignore_file_size_limit().and_then(|()| panics::caught(|| begin(tool, command, body))?);
    scratch::clear();
    match result {
        Ok(Answer::Yes) => ExitCode::from(0),
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) => {
            complain(tool, &error);
            ExitCode::from(exit_code(&error))
        }
    }
}

fn begin<A: Parser>(tool: &str, command: Command, body: impl FnOnce(A, Settings) -> Result<Answer>) -> Result<Answer> {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let words = config::expanded(tool, &command, words.collect())?;
    let early = config::lenient(tool, &command, &words);
    if let Some(what) = early.as_ref().and_then(|early| early.get_one::<Generate>("generate")) {
        let name = Path::new(&name).file_name().and_then(|name| name.to_str()).unwrap_or(tool);
        return print(what.text(command, name)?).map(|()| Answer::Yes);
    }
    if early.is_some_and(|early| early.get_one::<bool>("print_config") == Some(&true)) {
        return print(pasted(tool, &command, &words)?).map(|()| Answer::Yes);
    }
    let all = [OsString::from(tool)].into_iter().chain(words.iter().cloned());
    let matches =
        command.clone().try_get_matches_from(all).unwrap_or_else(|error| refuse(tool, &command, error, &words));
    if let Ok(Some(threads)) = matches.try_get_one::<NonZeroUsize>("threads") {
        // Rayon and candle both read this variable, once, when first used.
        // SAFETY: nothing else has started a thread yet.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    }
    let args = A::from_arg_matches(&matches)
        .unwrap_or_else(|error| refuse(tool, &command, error.format(&mut A::command()), &words));
    body(args, Settings { tool: tool.to_owned(), command, matches })
}

/// The settings of a command line, or of another program's launch line, as a file for --config.
fn pasted(tool: &str, command: &Command, words: &[OsString]) -> Result<String> {
    let words = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let (words, remarks) = paste::adapted(tool, command, words);
    let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    let all = [OsString::from(tool)].into_iter().chain(words.iter().cloned());
    if let Err(error) = command.clone().try_get_matches_from(all)
        && error.kind() != ErrorKind::MissingRequiredArgument
    {
        refuse(tool, command, error, &words);
    }
    let matches = config::lenient(tool, command, &words).context("the command line cannot be read")?;
    let settings = Settings { tool: tool.to_owned(), command: command.clone(), matches };
    let mut toml = settings.to_toml(&[])?;
    let mut remark = |text: String| toml += &format!("# {}\n", shown::escaped(&text));
    if !remarks.is_empty() {
        remark("Left out or changed:".into());
    }
    remarks.into_iter().for_each(&mut remark);
    settings.missing().into_iter().for_each(|flag| remark(format!("Needed and not given: {flag}")));
    Ok(toml)
}

/// Ends with what is wrong with the command line, or with clap's help on standard output.
fn refuse(tool: &str, command: &Command, error: clap::Error, words: &[OsString]) -> ! {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(sentences) = foreign::sentences(tool, command, &error, &words) {
        sentences.into_iter().for_each(|text| complain(tool, &Error::msg(text)));
        std::process::exit(error.exit_code());
    }
    if error.use_stderr() {
        let text = shown::message(error.render().to_string().trim_end());
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{text}\n"));
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// Accepts `--max_train_steps` for `--max-train-steps`, so that a launch line of Diffusion-DPO can be pasted.
fn with_underscores(arg: Arg) -> Arg {
    let names = arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten());
    // clap keeps the names of flags as long as the program runs.
    let underscored = names.filter(|name| name.contains('-')).map(|name| &*name.replace('-', "_").leak());
    let underscored: Vec<&'static str> = underscored.collect();
    arg.aliases(underscored)
}

/// A warning on standard error, also under `-q`.
pub fn warn(message: impl std::fmt::Display) {
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("warning: {message}\n"));
}

pub fn complain(tool: &str, error: &Error) {
    if !reader_left(error) {
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{tool}: {}\n", sentence(error)));
    }
}

pub fn exit_code(error: &Error) -> u8 {
    match error.downcast_ref::<Stopped>() {
        Some(stopped) => 128 + stopped.0,
        None if reader_left(error) => 0,
        None => 2,
    }
}

/// The chain of causes on one line, without repetitions, which wrapped errors have, and without the backtrace that candle adds.
fn sentence(error: &Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = cause.split("\n   0: ").next().unwrap_or_default().trim();
        if !text.contains(cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(cause);
        }
    }
    shown::sentence(&text)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        words: Vec<String>,
        #[arg(long, alias = "no-words", allow_hyphen_values = true)]
        not_these: Option<String>,
        #[command(flatten)]
        networks: Networks,
    }

    fn parse(line: &str) -> Result<Flags, String> {
        let matches = Flags::command().mut_args(with_underscores).try_get_matches_from(line.split(' '));
        matches.and_then(|m| Flags::from_arg_matches(&m)).map_err(|error| error.to_string())
    }

    #[test]
    fn underscores_are_dashes_in_flags_only() {
        for line in ["x --not_these=a_b", "x --not-these a_b", "x --no_words a_b"] {
            assert_eq!(parse(line).unwrap().not_these.as_deref(), Some("a_b"), "{line}");
        }
        assert_eq!(parse("x --not-these --no_text").unwrap().not_these.as_deref(), Some("--no_text"));
        assert_eq!(parse("x -- --not_these").unwrap().words, ["--not_these"]);
    }

    #[test]
    fn names_and_what_follows_them_are_checked() {
        assert_eq!(parse("x --device cuda:1 --dtype f16").unwrap().networks.device, Device::Cuda(1));
        for (line, parts) in [
            ("x --dtype f17", ["invalid value 'f17' for '--dtype <DTYPE>'", "possible values: f32, bf16, f16"]),
            ("x --device mps", ["invalid value 'mps' for '--device <DEVICE>'", "possible values: cpu, cuda[:N]"]),
            ("x --device cuda:x", ["invalid value 'cuda:x' for '--device <DEVICE>'", "'x' does not fit `cuda[:N]`"]),
        ] {
            let error = parse(line).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
