//! The page: one HTML file that holds its style, its script and mostly its images, and loads nothing from elsewhere.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// The part above the sections.
pub struct Head {
    pub title: String,
    pub note: Option<String>,
    /// Whether images are in files beside the page.
    pub loads_images: bool,
    /// Names and values at a glance.
    pub facts: Vec<(&'static str, String)>,
}

pub struct Section {
    /// The target of links within the page.
    pub id: &'static str,
    pub title: &'static str,
    pub body: Markup,
}

/// Marks a page as made by this program.
const GENERATOR: &str = "balanced-dpo report";
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// A prompt may contain anything, so the page may load nothing from outside, but images from beside it where they are there.
fn policy(loads_images: bool) -> String {
    let images = if loads_images { "data: 'self'" } else { "data:" };
    format!(
        "default-src 'none'; img-src {images}; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )
}

pub fn page<'a>(head: &Head, sections: impl Iterator<Item = &'a Section> + Clone) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(policy(head.loads_images));
                meta name="color-scheme" content="light dark";
                meta name="generator" content=(GENERATOR);
                title { (head.title) }
                style { (PreEscaped(STYLE)) }
                noscript { style { "#gallery[data-view] figure{display:block}" } }
            }
            body {
                a.skip href="#main" { "To the content" }
                header.top {
                    h1 { (head.title) }
                    @if let Some(note) = &head.note { p.remark { (note) } }
                    dl.facts { @for (name, value) in &head.facts { div { dt { (name) } dd { (value) } } } }
                }
                nav aria-label="Sections" { @for section in sections.clone() { a href={ "#" (section.id) } { (section.title) } } }
                main #main {
                    @for section in sections {
                        section id=(section.id) aria-labelledby={ (section.id) "-title" } {
                            h2 id={ (section.id) "-title" } { (section.title) }
                            (section.body)
                        }
                    }
                }
                dialog #large aria-label="The same prompt, larger" {
                    div.turn { button #earlier type="button" { "Previous" } button #later type="button" { "Next" } button #shut type="button" autofocus { "Close" } }
                    div #stage {}
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
    .into_string()
}
