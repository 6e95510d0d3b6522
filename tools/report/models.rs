//! The models of a report: each has one colour and one mark in all charts.

use maud::{Markup, html};

use crate::plot::{self, Entry, px};

/// Names in the order of their colours. The first is the baseline, which is grey.
#[derive(Default)]
pub struct Models(Vec<String>);

/// There are eight colours. Further models use those of the others again, except the baseline's.
const COLOURS: usize = 8;

impl Models {
    pub fn new<'a>(baseline: Option<&'a str>, others: impl IntoIterator<Item = &'a str>) -> Self {
        let mut names: Vec<String> = vec![];
        for name in baseline.into_iter().chain(others) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        Self(names)
    }

    pub fn names(&self) -> &[String] {
        &self.0
    }

    pub fn baseline(&self) -> Option<&str> {
        self.0.first().map(String::as_str)
    }

    fn colour(&self, name: &str) -> usize {
        match self.0.iter().position(|known| known == name) {
            None => 0,
            Some(i) if i < COLOURS => i,
            Some(i) => 1 + (i - 1) % (COLOURS - 1),
        }
    }

    pub fn class(&self, name: &str) -> String {
        format!("s{}", self.colour(name))
    }

    /// A model's mark at a point of a plot: one of four shapes, so that models differ without colour too.
    pub fn mark(&self, name: &str, x: f64, y: f64) -> Markup {
        let r = 3.6;
        let shape: &[(f64, f64)] = match self.colour(name) % 4 {
            0 => return html! { circle cx=(px(x)) cy=(px(y)) r=(r) {} },
            1 => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            2 => &[(0.0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
            _ => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
        };
        let points: Vec<_> = shape.iter().map(|(dx, dy)| format!("{},{}", px(x + r * dx), px(y + r * dy))).collect();
        html! { polygon points=(points.join(" ")) {} }
    }

    pub fn legend(&self, names: &[&str]) -> Markup {
        let entry = |&name| Entry { name, class: self.class(name), sample: self.mark(name, 7.0, 7.0), width: 14 };
        plot::legend(&names.iter().map(entry).collect::<Vec<_>>())
    }
}
