//! JSON files: the configurations of models and the indices of their weights.

use std::{io::Read, path::Path};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::file;

/// The longest JSON file that is read, in bytes. The longest published one, a tokenizer of 256,000 tokens, has 35 MB.
const LONGEST: u64 = 256 << 20;

/// Reads a JSON file into `T`. Unknown keys are ignored; missing keys take `T`'s defaults.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(&text(path)?, path)
}

/// The text of the JSON file `path` as `T`. Python writes infinities and NaN, which JSON does not have; they become null.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    let says = || format!("{} does not hold what is expected", path.display());
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(error) => serde_json::from_str(&without_infinities(text)).map_err(|_| error).with_context(says),
    }
}

/// The text of a JSON file, which is not longer than any published one.
pub fn text(path: &Path) -> Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let mut text = String::new();
    let read = file::open(path)?.take(LONGEST + 1).read_to_string(&mut text).with_context(cannot)?;
    ensure!(
        read as u64 <= LONGEST,
        "{} is longer than the {LONGEST} bytes that are read of a JSON file",
        path.display()
    );
    Ok(text)
}

/// Whether `value` is what `text` says; numbers are compared as numbers.
pub fn same(value: &Value, text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|other| match (value.as_f64(), other.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => *value == other,
    })
}

fn without_infinities(text: &str) -> String {
    let mut parts = text.split('"');
    let outside = |part: &str| part.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null");
    let mut out = parts.next().map(outside).unwrap_or_default();
    for (i, part) in parts.enumerate() {
        out.push('"');
        out.push_str(&if i % 2 == 0 { part.to_owned() } else { outside(part) });
    }
    out
}

/// Declares a configuration with the value of each key that is missing in a file.
macro_rules! defaults {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$about:meta])* $field_vis:vis $field:ident: $type:ty = $value:expr,)+
    }) => {
        $(#[$meta])*
        #[derive(serde::Deserialize)]
        #[serde(default)]
        $vis struct $name { $($(#[$about])* $field_vis $field: $type),+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $value),+ }
            }
        }
    };
}
pub(crate) use defaults;
