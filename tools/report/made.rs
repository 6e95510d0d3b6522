//! How the tables were made, from the origin that each carries.

use maud::{Markup, html};
use pipe::origin::Origin;
use serde_json::Value;

use crate::plot::table;

/// A table's name, as it was given, and what it says of itself.
pub struct Made {
    pub table: String,
    pub origin: Option<Origin>,
}

pub fn section(all: &[Made]) -> Markup {
    table(
        "What the tables say of themselves",
        html! { tr { th scope="col" { "table" } th scope="col" { "made by" } th scope="col" { "with" } th scope="col" { "models" } } },
        html! {
            @for made in all {
                tr {
                    th scope="row" { (made.table) }
                    @match &made.origin {
                        Some(o) => {
                            td { (o.tool) " " (o.version) }
                            td { @for (name, value) in &o.args { span.pair { (name) " " b { (word(value)) } } " " } }
                            td { @for (role, hash) in &o.models { span.pair { (role) " " code { (short(hash)) } } " " } }
                        }
                        None => { td colspan="3" { "it does not tell" } }
                    }
                }
            }
        },
    )
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(word).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// The beginning of a hash: enough to tell two models apart.
fn short(hash: &Value) -> String {
    let text = word(hash);
    let digits = text.split_once("sha256:").map_or(text.as_str(), |(_, rest)| rest);
    digits.chars().take_while(char::is_ascii_hexdigit).take(12).collect()
}
