//! The facts found about one file or folder.

use std::path::{Path, PathBuf};

use anyhow::Error;
use pipe::origin::Origin;
use pipe::{shown, text::shown as short};
use serde_json::{Value, json};

/// How closely one looks.
#[derive(Clone, Copy)]
pub struct How<'a> {
    /// Only at headers and footers.
    pub quick: bool,
    /// Where relative paths in lists begin.
    pub root: Option<&'a Path>,
}

/// `path`: also a model's hub id, which means what the hub's cache holds of it.

#[derive(Default)]
pub struct Finding {
    pub path: PathBuf,
    /// "labels", "checkpoint of `train`"; empty if unknown.
    pub kind: String,
    /// Its content: "48 rows", "metrics hps, clip".
    pub holds: Vec<String>,
    /// The faults and what is missing, a sentence each.
    pub problems: Vec<String>,
    /// Why it is unknown whether it is whole: these tools do not use this kind of file.
    pub unknown: Option<String>,
    pub origin: Option<Origin>,
}

impl Finding {
    pub fn new(kind: impl Into<String>) -> Self {
        Self { kind: kind.into(), ..Self::default() }
    }

    pub fn not_whole(kind: &str, error: &Error) -> Self {
        Self { problems: vec![sentence(error)], ..Self::new(kind) }
    }

    pub fn unknown(kind: impl Into<String>, why: impl Into<String>) -> Self {
        Self { unknown: Some(why.into()), ..Self::new(kind) }
    }

    pub fn is_whole(&self) -> bool {
        self.problems.is_empty() && self.unknown.is_none()
    }

    pub fn holds(mut self, what: impl Into<String>) -> Self {
        self.holds.push(what.into());
        self
    }

    pub fn problem(&mut self, what: impl Into<String>) {
        self.problems.push(what.into());
    }

    /// Takes what is wrong with a part of this, which is called `name` here.
    pub fn with_part(&mut self, name: &str, part: Self) {
        self.holds.extend(part.holds.into_iter().map(|holds| format!("{name}: {holds}")));
        self.problems.extend(part.problems.into_iter().map(|problem| format!("{name}: {problem}")));
        self.origin = self.origin.take().or(part.origin);
    }

    /// The lines for a person.
    pub fn text(&self) -> String {
        let whole = match (&self.problems[..], &self.unknown) {
            ([], None) => "whole",
            ([], Some(_)) => "unknown",
            _ => "NOT whole",
        };
        let kind = if self.kind.is_empty() { String::new() } else { format!(", {}", self.kind) };
        let mut text = format!("{}: {whole}{kind}\n", shown::path(&self.path));
        let mut line = |what: &str, of: &str| text += &format!("  {what}{}\n", shown::escaped(of));
        self.problems.iter().for_each(|problem| line("! ", problem));
        self.unknown.iter().for_each(|why| line("? ", why));
        self.holds.iter().for_each(|holds| line("", holds));
        for (i, origin) in self.origin.iter().flat_map(Origin::chain).enumerate() {
            line(if i == 0 { "made by " } else { "  from " }, &made_by(origin));
        }
        text
    }

    pub fn json(&self) -> Value {
        let whole = (!self.problems.is_empty() || self.unknown.is_none()).then(|| self.is_whole());
        json!({
            "file": self.path.display().to_string(), "whole": whole, "kind": self.kind, "holds": self.holds,
            "problems": self.problems, "unknown": self.unknown, "origin": self.origin,
        })
    }
}

/// The chain of causes in one line.
fn sentence(error: &Error) -> String {
    let mut causes: Vec<String> = vec![];
    for cause in error.chain().map(ToString::to_string) {
        if !causes.iter().any(|known| known.contains(&cause)) {
            causes.push(cause);
        }
    }
    shown::sentence(&causes.join(": "))
}

/// "vote 0.1.0 (rule majority, ties abstain), models hps 0123456789ab".
fn made_by(origin: &Origin) -> String {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let args: Vec<_> = origin.args.iter().filter(|(_, value)| !value.is_object()).collect();
    let args: Vec<_> = args.iter().map(|(name, value)| format!("{name} {}", short(&plain(value)))).collect();
    let models = origin.models.iter().map(|(role, hash)| format!("{role} {}", shortened(&plain(hash))));
    let models: Vec<_> = models.collect();
    let of = if models.is_empty() { String::new() } else { format!("; models: {}", models.join(", ")) };
    let args = if args.is_empty() { String::new() } else { format!(": {}", args.join(", ")) };
    format!("{} {}{args}{of}", short(&origin.tool), short(&origin.version))
}

/// The first digits of a hash, enough to tell it from others.
fn shortened(hash: &str) -> &str {
    let digits = hash.strip_prefix("sha256:").unwrap_or(hash);
    digits.get(..12).unwrap_or(digits)
}
