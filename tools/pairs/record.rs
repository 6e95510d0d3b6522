//! The common form of all sources: records of named fields, each a text, a number, bytes, a file or a list.

use std::path::PathBuf;

use anyhow::{Result, bail};
use pipe::text::shown;
use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    Text(String),
    Number(f64),
    /// Yes or no, which is a number and no text.
    Truth(bool),
    Bytes(Vec<u8>),
    /// The content of a file.
    File(PathBuf),
    List(Vec<Field>),
}

/// One row of a table, one object of a JSON file, the files of one sample in a tar archive.
#[derive(Debug, Default)]
pub struct Record {
    /// Where it is, for messages.
    pub place: String,
    /// Names of further fields, which were not read.
    pub unread: String,
    /// By their names in small letters.
    fields: Vec<(String, Field)>,
}

impl Record {
    pub fn new(place: String) -> Self {
        Self { place, ..Self::default() }
    }

    pub fn push(&mut self, name: &str, field: Field) {
        self.fields.push((name.to_lowercase(), field));
    }

    /// Adds the fields of a JSON object. Nulls and objects are left out.
    pub fn push_json(&mut self, value: Value) -> Result<()> {
        let Value::Object(object) = value else { bail!("{}: expected an object, as {{\"prompt\": ...}}", self.place) };
        for (name, value) in object {
            if let Some(field) = Field::of(value) {
                self.push(&name, field);
            }
        }
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|(own, _)| own == name).map(|(_, field)| field)
    }

    /// The names of all fields, for messages.
    pub fn names(&self) -> String {
        let names = self.fields.iter().map(|(name, _)| name).chain([&self.unread]).filter(|name| !name.is_empty());
        names.map(|name| shown(name).into_owned()).collect::<Vec<_>>().join(", ")
    }
}

impl Field {
    fn of(value: Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text)),
            Value::Bool(yes) => Some(Self::Truth(yes)),
            Value::Number(number) => number.as_f64().map(Self::Number),
            Value::Array(list) => list.into_iter().map(Self::of).collect::<Option<_>>().map(Self::List),
            Value::Null | Value::Object(_) => None,
        }
    }

    /// A number, also as a text.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Truth(yes) => Some(f64::from(u8::from(*yes))),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// A text; numbers become theirs.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }
}
