//! The settings of a run as a file for `--config`: what was given, and in the same words the defaults.

use std::fmt::Write;

use anyhow::{Context, Result};
use clap::builder::ValueParser;
use clap::error::{ContextKind, ErrorKind};
use clap::{Arg, ArgMatches, Command};

use super::config::{ABOUT_ITSELF, given, is_switch, takes_many};
use super::{COMMON, paste};
use std::any::TypeId;
use std::num::NonZeroUsize;

/// The settings of a run, from which the same run can be made again.
pub struct Settings {
    pub(super) tool: String,
    pub(super) command: Command,
    pub(super) matches: ArgMatches,
}

impl Settings {
    /// All settings as TOML, one key per flag, under the headings of `--help`. A default that would contradict what was given, or
    /// needs another flag, is a comment. `but`: the arguments that are left out.
    /// Refuses a path that is not UTF-8, as a TOML file must be.
    pub fn to_toml(&self, but: &[&str]) -> Result<String> {
        let is_left_out = |arg: &Arg| but.contains(&arg.get_id().as_str());
        let mut given = given(&self.command, &self.matches);
        given.retain(|arg| !is_left_out(arg));
        let mut words = vec![self.tool.clone()];
        for arg in &given {
            words.extend(self.words(arg)?);
        }
        let complaint = self.complaint(&words);
        let mut toml = format!(
            "# Settings of `{0}`; `{0} --config FILE` runs with them. Paths are as they were typed.\n",
            self.tool
        );
        let mut heading = None;
        for arg in self.in_order() {
            let is_given = given.iter().any(|other| other.get_id() == arg.get_id());
            if is_left_out(arg) || (arg.is_hide_set() && !is_given) {
                continue;
            }
            let Some(value) = self.value(arg)? else { continue };
            let fits = is_given || is_switch(arg) || {
                let more: Vec<String> = words.iter().cloned().chain(self.words(arg)?).collect();
                self.complaint(&more) == complaint
            };
            if heading != Some(arg.get_help_heading()) {
                heading = Some(arg.get_help_heading());
                let _ = writeln!(toml, "\n# {}", arg.get_help_heading().unwrap_or("Main options"));
            }
            let _ = writeln!(toml, "{}{} = {value}", if fits { "" } else { "# " }, key(arg));
        }
        Ok(toml)
    }

    /// The arguments that a file may set: values without a flag, then flags by their headings, the common ones last.
    fn in_order(&self) -> Vec<&Arg> {
        let about_itself = |arg: &&Arg| ABOUT_ITSELF.contains(&arg.get_id().as_str());
        let args: Vec<&Arg> = self.command.get_arguments().filter(|arg| !about_itself(arg)).collect();
        let mut headings: Vec<_> = vec![None];
        headings.extend(args.iter().map(|arg| arg.get_help_heading()));
        let place = |arg: &&Arg| {
            let common = arg.get_help_heading() == Some(COMMON);
            (common, headings.iter().position(|heading| *heading == arg.get_help_heading()))
        };
        let mut sorted = args.clone();
        sorted.sort_by_key(|arg| (!arg.is_positional(), place(arg)));
        sorted
    }

    /// The value of an argument as TOML, if it has one.
    fn value(&self, arg: &Arg) -> Result<Option<String>> {
        if is_switch(arg) {
            return Ok(Some(self.matches.get_flag(arg.get_id().as_str()).to_string()));
        }
        let values: Vec<String> = self.texts(arg)?.iter().map(|text| literal(arg.get_value_parser(), text)).collect();
        Ok(match &values[..] {
            [] => None,
            [one] if !takes_many(arg) => Some(one.clone()),
            all => Some(format!("[{}]", all.join(", "))),
        })
    }

    fn texts(&self, arg: &Arg) -> Result<Vec<&str>> {
        let raw = self.matches.get_raw(arg.get_id().as_str());
        let text = |value: &'_ std::ffi::OsStr| -> Result<()> {
            value
                .to_str()
                .map(drop)
                .with_context(|| format!("{} is not UTF-8, as a TOML file must be", value.display()))
        };
        let raw: Vec<_> = raw.into_iter().flatten().collect();
        raw.iter().try_for_each(|value| text(value))?;
        Ok(raw.into_iter().filter_map(|value| value.to_str()).collect())
    }

    /// The argument as it would be typed.
    fn words(&self, arg: &Arg) -> Result<Vec<String>> {
        let name = arg.get_long().map(|name| format!("--{name}")).unwrap_or_default();
        if is_switch(arg) {
            let on = self.matches.get_flag(arg.get_id().as_str());
            return Ok(on.then_some(name).into_iter().collect());
        }
        let texts = self.texts(arg)?;
        if arg.is_positional() {
            return Ok(texts.into_iter().map(str::to_owned).collect());
        }
        Ok(match arg.get_value_delimiter() {
            Some(delimiter) if !texts.is_empty() => vec![format!("{name}={}", texts.join(&delimiter.to_string()))],
            _ => texts.into_iter().map(|text| format!("{name}={text}")).collect(),
        })
    }

    /// The error that clap finds in a command line: the kind of error and the arguments that it names.
    fn complaint(&self, words: &[String]) -> Option<(ErrorKind, Option<String>)> {
        let error = self.command.clone().try_get_matches_from(words).err()?;
        Some((error.kind(), error.get(ContextKind::InvalidArg).map(|arg| format!("{arg:?}"))))
    }

    /// The flags that are needed and were not given.
    pub(super) fn missing(&self) -> Vec<String> {
        let given = given(&self.command, &self.matches);
        let lacks = |arg: &&Arg| arg.is_required_set() && !self.matches.contains_id(arg.get_id().as_str());
        let asked = self.command.get_arguments().filter(lacks).map(key);
        let is_given = |name: &str| given.iter().any(|arg| key(arg) == name);
        paste::missing(&self.tool, is_given).map(str::to_owned).chain(asked).collect()
    }
}

/// The name of an argument in a file.
fn key(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().as_str().replace('_', "-"), str::to_owned)
}

/// A value in TOML: a number where the flag takes one, else a text.
fn literal(parser: &ValueParser, text: &str) -> String {
    let kind = parser.type_id();
    let whole = [
        TypeId::of::<u8>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<NonZeroUsize>(),
    ];
    if whole.iter().any(|number| kind == *number) && text.parse::<i64>().is_ok() {
        return text.trim_start_matches('+').to_owned();
    }
    if kind == TypeId::of::<f64>() && text.parse::<f64>().is_ok() {
        // TOML has digits on both sides of the point, and no other spelling of infinity than `inf`.
        let digits = text.bytes().all(|b| b.is_ascii_digit()) && !(text.len() > 1 && text.starts_with('0'));
        return if digits || text == "inf" {
            text.to_owned()
        } else {
            format!("{:?}", text.parse::<f64>().unwrap_or_default())
        };
    }
    quoted(text)
}

/// A basic string: JSON's escapes are TOML's, except DEL.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
