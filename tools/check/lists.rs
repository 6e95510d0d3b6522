//! Images that a list of pairs names: are they there?

use std::fs;
use std::path::PathBuf;

use arrow::datatypes::{DataType, Schema};
use pipe::text::count;
use pipe::{fields, place};
use serde_json::{Map, Value};

use crate::finding::{Finding, How};

/// Images that were looked for; none with --quick.
pub struct Named {
    quick: bool,
    /// Where relative paths begin, as in `pairs`.
    root: PathBuf,
    all: usize,
    missing: usize,
    first: Vec<String>,
}

/// Missing images that are named.
const MOST: usize = 3;

impl Named {
    /// `list`: the file that names them.
    pub fn new(list: &std::path::Path, how: How) -> Self {
        let root = how.root.unwrap_or_else(|| place::folder_of(list)).to_owned();
        Self { quick: how.quick, root, all: 0, missing: 0, first: vec![] }
    }

    /// Does nothing where one looks quickly.
    pub fn look_for(&mut self, image: &str) {
        if self.quick {
            return;
        }
        self.all += 1;
        if fs::metadata(self.root.join(image)).is_ok_and(|file| file.is_file() && file.len() > 0) {
            return;
        }
        self.missing += 1;
        if self.first.len() < MOST {
            self.first.push(pipe::text::shown(image).into_owned());
        }
    }

    /// The images of an object in JSON: of a pair, or of a list.
    pub fn look_for_those_of(&mut self, object: &Map<String, Value>) {
        let texts = object.iter().filter(|(_, value)| value.is_string()).map(|(name, _)| name.as_str());
        let sides = fields::sides(texts).into_iter().flatten();
        let lists = fields::LISTS.iter().filter_map(|name| object.get(*name)?.as_array()).flatten();
        sides
            .filter_map(|name| object.get(name))
            .chain(lists)
            .filter_map(Value::as_str)
            .for_each(|image| self.look_for(image));
    }

    pub fn tell(self, finding: &mut Finding) {
        let named = count(self.all, "image");
        match self.missing {
            _ if self.all == 0 => {}
            0 => finding.holds.push(format!("names {named}, all of which are there")),
            n => finding.problem(format!(
                "{n} of the {named} that it names are missing or empty, first {} (relative paths begin in {}; --root names another \
                 folder)",
                self.first.join(", "),
                if self.root.as_os_str().is_empty() { ".".into() } else { self.root.display().to_string() },
            )),
        }
    }
}

/// The columns of a table that name the two images of a pair.
pub fn columns(schema: &Schema) -> Vec<&str> {
    let is_text = |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let texts = schema.fields().iter().filter(|field| match field.data_type() {
        DataType::Dictionary(_, values) => is_text(values),
        kind => is_text(kind),
    });
    fields::sides(texts.map(|field| field.name().as_str())).into_iter().flatten().collect()
}
