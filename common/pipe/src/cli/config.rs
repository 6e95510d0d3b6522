//! `--config run.toml`: a file of settings, whose keys are the names of flags. The file becomes words of the command line, in front
//! of those that were typed. What was typed wins: a key of the same flag, or of one that contradicts it, is left out.

use std::{ffi::OsString, fs, io::Read, ops::Range, path::Path};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, Id};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::foreign;

/// The programs of this project: a table with one of these names holds the settings of that program alone.
pub(super) const PROGRAMS: [&str; 11] =
    ["prompts", "pairs", "score", "vote", "encode", "train", "refresh-ref", "sample", "winrate", "report", "check"];

/// Flags about the command line itself, which a file cannot set.
pub(super) const ABOUT_ITSELF: [&str; 5] = ["config", "print_config", "generate", "help", "version"];

/// Bytes of a file of settings: more than all flags of all programs take.
const LONGEST: u64 = 1 << 20;

/// `words` as they were typed, after the program's name, with the settings of their `--config` in front.
pub(super) fn expanded(tool: &str, command: &Command, words: Vec<OsString>) -> Result<Vec<OsString>> {
    let (words, unset) = without_false_switches(command, words);
    let Some(typed) = lenient(tool, command, &words) else { return Ok(words) };
    let Some(path) = typed.get_one::<std::path::PathBuf>("config") else { return Ok(words) };
    let cannot = || format!("--config: cannot read {}", path.display());
    let mut text = String::new();
    fs::File::open(path).with_context(cannot)?.take(LONGEST + 1).read_to_string(&mut text).with_context(cannot)?;
    ensure!(text.len() as u64 <= LONGEST, "--config {}: the file is larger than {LONGEST} bytes", path.display());
    let file = File { tool, command, path, text: &text };
    let mut settings = file.settings()?;
    let given = given(command, &typed).into_iter().chain(unset.iter().filter_map(|id| find(command, id.as_str())));
    let given: Vec<&Arg> = given.collect();
    settings.retain(|setting| !given.iter().any(|arg| excludes(command, arg, setting.arg)));
    // Values without a flag come first, and a flag follows the last one: no word is taken for a value that a flag may have.
    settings.sort_by_key(|setting| !setting.arg.is_positional());
    let flag = ["--config".into(), path.clone().into_os_string()];
    Ok(settings.iter().flat_map(Setting::words).chain(flag).chain(words).collect())
}

/// The readable part of a command line that may lack needed flags. `None` if it asks for help or the version.
pub(super) fn lenient(tool: &str, command: &Command, words: &[OsString]) -> Option<ArgMatches> {
    let words = [OsString::from(tool)].into_iter().chain(words.iter().cloned());
    command.clone().ignore_errors(true).try_get_matches_from(words).ok()
}

/// The arguments that were typed.
pub(super) fn given<'a>(command: &'a Command, matches: &ArgMatches) -> Vec<&'a Arg> {
    let typed = |arg: &&Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    command.get_arguments().filter(typed).collect()
}

/// The words without `--flag=false`, and the switches that they leave off; `--flag=true` is `--flag`.
fn without_false_switches(command: &Command, words: Vec<OsString>) -> (Vec<OsString>, Vec<Id>) {
    let mut unset = vec![];
    let keep = |word: OsString| {
        let text = word.to_str().unwrap_or_default();
        let value = text.strip_prefix("--").and_then(|text| text.split_once('='));
        let switch = value.and_then(|(name, value)| Some((find(command, name).filter(|arg| is_switch(arg))?, value)));
        match switch {
            Some((arg, "false")) => {
                unset.push(arg.get_id().clone());
                None
            }
            Some((arg, "true")) => Some(format!("--{}", arg.get_long().unwrap_or_default()).into()),
            _ => Some(word),
        }
    };
    (words.into_iter().filter_map(keep).collect(), unset)
}

pub(super) fn is_switch(arg: &Arg) -> bool {
    !arg.get_action().takes_values()
}

/// Whether a value of `a` excludes one of `b`.
fn excludes(command: &Command, a: &Arg, b: &Arg) -> bool {
    let conflict = |a: &Arg, b: &Arg| command.get_arg_conflicts_with(a).iter().any(|arg| arg.get_id() == b.get_id());
    let one_of = command.get_groups().any(|group| {
        let has = |arg: &Arg| group.get_args().any(|id| id == arg.get_id());
        !group.clone().is_multiple() && has(a) && has(b)
    });
    a.get_id() == b.get_id() || conflict(a, b) || conflict(b, a) || one_of
}

/// The argument with this name: a flag's, with `-` or `_`, or that of a value without a flag.
pub(super) fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let is = |known: &str| known.replace('_', "-") == name.replace('_', "-");
    command.get_arguments().find(|arg| {
        let mut names = arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten());
        let value = arg.get_value_names().and_then(|names| names.first()).filter(|_| arg.is_positional());
        names.any(is) || is(arg.get_id().as_str()) || value.is_some_and(|value| is(&value.to_lowercase()))
    })
}

/// One flag of a file. `values`: `None` for a flag alone.
struct Setting<'a> {
    arg: &'a Arg,
    values: Option<Vec<String>>,
}

impl Setting<'_> {
    fn words(&self) -> Vec<OsString> {
        let name = format!("--{}", self.arg.get_long().unwrap_or_default());
        let Some(values) = &self.values else { return vec![name.into()] };
        if self.arg.is_positional() {
            // No file's name is taken for a flag.
            let beside = |value: &String| match value.starts_with('-') && value != "-" {
                true => format!("./{value}").into(),
                false => value.into(),
            };
            return values.iter().map(beside).collect();
        }
        match self.arg.get_value_delimiter() {
            Some(delimiter) => vec![format!("{name}={}", values.join(&delimiter.to_string())).into()],
            None => values.iter().map(|value| format!("{name}={value}").into()).collect(),
        }
    }
}

struct File<'a> {
    tool: &'a str,
    command: &'a Command,
    path: &'a Path,
    text: &'a str,
}

impl<'a> File<'a> {
    /// The settings of this program in the file. The program's own table wins over the keys above all tables.
    fn settings(&self) -> Result<Vec<Setting<'a>>> {
        let wrong = |error: toml::de::Error| {
            let place = self.place(error.span().unwrap_or_default());
            anyhow!("{place}: {}", error.message())
        };
        let table = DeTable::parse(self.text).map_err(wrong)?;
        let mut settings = self.table(table.get_ref().iter().filter(|(_, value)| !value.get_ref().is_table()))?;
        for (key, value) in table.get_ref().iter() {
            let Some(own) = value.get_ref().as_table() else { continue };
            let (place, name) = (self.place(key.span()), key.get_ref().replace('_', "-"));
            ensure!(
                PROGRAMS.contains(&&*name),
                "{place}: [{}] is not the table of a program; it may be that of {}",
                key.get_ref(),
                PROGRAMS.join(", ")
            );
            if name == self.tool {
                let own = self.table(own.iter())?;
                settings.retain(|above| own.iter().all(|own| !excludes(self.command, own.arg, above.arg)));
                settings.extend(own);
            }
        }
        Ok(settings)
    }

    fn table<'t>(
        &self,
        entries: impl Iterator<Item = (&'t Spanned<DeString<'t>>, &'t Spanned<DeValue<'t>>)>,
    ) -> Result<Vec<Setting<'a>>> {
        let mut settings: Vec<Setting> = vec![];
        for (key, value) in entries {
            let (place, key) = (self.place(key.span()), key.get_ref().as_ref());
            let arg = self.arg(key).with_context(|| place.clone())?;
            let twice = settings.iter().any(|other| other.arg.get_id() == arg.get_id());
            ensure!(!twice, "{place}: `{key}` and another key set the same flag; leave one of them out");
            let values = values(arg, value.get_ref()).with_context(|| format!("{place}: {key}"))?;
            let setting = values.map(|values| Setting { arg, values });
            setting.iter().try_for_each(|setting| self.check(setting)).with_context(|| place.clone())?;
            settings.extend(setting);
        }
        Ok(settings)
    }

    /// Refuses a value that the flag does not take.
    fn check(&self, setting: &Setting) -> Result<()> {
        let words: Vec<OsString> = [self.tool.into()].into_iter().chain(setting.words()).collect();
        let Err(error) = self.command.clone().try_get_matches_from(&words) else { return Ok(()) };
        ensure!(!matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation), "{}", {
            let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            let said = foreign::sentences(self.tool, self.command, &error, &words[1..]);
            said.map_or_else(|| error.to_string(), |said| said.join("; "))
        });
        Ok(())
    }

    fn arg(&self, key: &str) -> Result<&'a Arg> {
        let arg = find(self.command, key).filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()));
        if let Some(arg) = arg {
            ensure!(
                !ABOUT_ITSELF.contains(&arg.get_id().as_str()),
                "`{key}` is for the command line, not for a file of settings"
            );
            return Ok(arg);
        }
        let flag = format!("--{key}");
        let error = self.command.clone().ignore_errors(false).try_get_matches_from([self.tool, &flag]).err();
        let said = error.and_then(|error| foreign::sentences(self.tool, self.command, &error, &[flag]));
        bail!("{}", said.map_or_else(|| format!("`{key}` is not a flag of `{}`", self.tool), |said| said.join("; ")))
    }

    /// The file and the line in which `span` begins.
    fn place(&self, span: Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or_default();
        format!("{}:{}", self.path.display(), before.matches('\n').count() + 1)
    }
}

/// The values of a flag as they would be typed. `Some(None)`: the flag alone; `None`: nothing, which is what `false` means.
fn values(arg: &Arg, value: &DeValue) -> Result<Option<Option<Vec<String>>>> {
    let optional = arg.get_num_args().is_some_and(|n| n.min_values() == 0);
    let many = takes_many(arg);
    match value {
        DeValue::Boolean(on) if is_switch(arg) || optional => Ok(on.then_some(None)),
        _ if is_switch(arg) => bail!("expected true or false, found {}", value.type_str()),
        DeValue::Array(values) if many => {
            ensure!(!values.is_empty(), "the list is empty; leave the key out instead");
            values.iter().map(|value| text(value.get_ref())).collect::<Result<_>>().map(|all| Some(Some(all)))
        }
        DeValue::Array(_) => Err(Error::msg("the flag takes one value, not a list")),
        one => Ok(Some(Some(vec![text(one)?]))),
    }
}

/// Whether a flag may hold several values.
pub(super) fn takes_many(arg: &Arg) -> bool {
    let several = arg.get_num_args().is_some_and(|n| n.max_values() > 1);
    several || arg.get_value_delimiter().is_some() || matches!(arg.get_action(), clap::ArgAction::Append)
}

fn text(value: &DeValue) -> Result<String> {
    Ok(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().trim_start_matches('+').to_owned(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())?.to_string(),
        DeValue::Float(number) => number.as_str().trim_start_matches('+').to_owned(),
        other => bail!("expected a text or a number, found {}", other.type_str()),
    })
}
