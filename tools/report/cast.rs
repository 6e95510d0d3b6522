//! The models of a report, each with one colour and one mark from the first chart to the last.

use maud::{Markup, html};

use crate::plot::px;

/// Names in the order of their colours; the one that the others are compared with comes first and is grey.
#[derive(Default)]
pub struct Cast(Vec<String>);

/// Colours and marks there are; further models begin anew.
const COLOURS: usize = 8;

impl Cast {
    pub fn new<'a>(baseline: Option<&str>, others: impl IntoIterator<Item = &'a str>) -> Self {
        let mut cast = Self::default();
        cast.0.extend(baseline.map(str::to_owned));
        for name in others {
            if !cast.0.iter().any(|known| known == name) {
                cast.0.push(name.to_owned());
            }
        }
        cast
    }

    pub fn names(&self) -> &[String] {
        &self.0
    }

    pub fn baseline(&self) -> Option<&str> {
        self.0.first().map(String::as_str)
    }

    fn place(&self, name: &str) -> usize {
        match self.0.iter().position(|known| known == name) {
            None => 0,
            Some(place) if place < COLOURS => place,
            Some(place) => 1 + (place - 1) % (COLOURS - 1),
        }
    }

    /// The style's class of a model's colour.
    pub fn class(&self, name: &str) -> String {
        format!("s{}", self.place(name))
    }

    /// A model's mark, filled: told apart without colour.
    pub fn mark(&self, name: &str, x: f64, y: f64) -> Markup {
        let r = 3.6;
        let shape = |points: &[(f64, f64)]| {
            let at: Vec<_> = points.iter().map(|(dx, dy)| format!("{},{}", px(x + r * dx), px(y + r * dy))).collect();
            html! { polygon points=(at.join(" ")) {} }
        };
        match self.place(name) % 4 {
            0 => html! { circle cx=(px(x)) cy=(px(y)) r=(r) {} },
            1 => shape(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            2 => shape(&[(0.0, -1.2), (1.1, 0.9), (-1.1, 0.9)]),
            _ => shape(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
        }
    }

    pub fn legend<S: AsRef<str>>(&self, names: &[S]) -> Markup {
        html! {
            ul.legend {
                @for name in names {
                    @let name = name.as_ref();
                    li {
                        svg class=(self.class(name)) viewBox="0 0 14 14" aria-hidden="true" { (self.mark(name, 7.0, 7.0)) }
                        (name)
                    }
                }
            }
        }
    }
}
