//! How the tables were made, as the origin in each of them says.

use std::path::PathBuf;

use anyhow::Result;
use maud::{Markup, html};
use pipe::origin::{self, Origin};
use pipe::table::Inputs;
use serde_json::Value;

use crate::table::frame;

/// The section "How it was made"; `None` without tables.
pub fn section<'a>(tables: impl Iterator<Item = &'a PathBuf>) -> Result<Option<Markup>> {
    let rows = tables.map(|path| Ok((path.display(), origin(path)?))).collect::<Result<Vec<_>>>()?;
    let head = html! { tr { @for head in ["table", "made by", "with", "models"] { th scope="col" { (head) } } } };
    let body = html! {
        @for (table, origin) in &rows {
            tr {
                th scope="row" { (table) }
                @match origin {
                    Some(o) => {
                        td { (o.tool) " " (o.version) }
                        td { @for (name, value) in &o.args { span.pair { (name) " " b { (words(value)) } } " " } }
                        td { @for (role, hash) in &o.models { span.pair { (role) " " code { (short(hash)) } } " " } }
                    }
                    None => { td colspan="3" { "not stored in the table" } }
                }
            }
        }
    };
    let section = frame("What the tables say of themselves", &head, &body);
    Ok((!rows.is_empty()).then_some(section))
}

fn origin(path: &PathBuf) -> Result<Option<Origin>> {
    let inputs = Inputs::open(std::slice::from_ref(path))?;
    let text = inputs.schema().metadata().get(origin::KEY);
    Ok(text.and_then(|text| Origin::from_json(text)))
}

/// A value of an argument, as text.
pub fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(words).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// The first digits of a hash, enough to tell two models apart.
fn short(hash: &Value) -> String {
    let text = words(hash);
    let digits = text.split_once("sha256:").map_or(text.as_str(), |(_, rest)| rest);
    digits.chars().take_while(char::is_ascii_hexdigit).take(12).collect()
}
