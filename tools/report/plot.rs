//! The common parts of all plots: scale, axes, legend, the panel and the chart around panels. The plots are inline SVG; a colour is a class,
//! which the style of the page sets for light and dark screens and for paper.

use maud::{Markup, html};

/// Width and height of a panel in SVG units. Text is 11 units high, so the width is about what a panel has on a screen, in pixels.
pub type Size = (f64, f64);

/// The upper edge of every plot within its panel.
pub const TOP: f64 = 10.0;
/// Left of the plot (labels of the y axis), right of it, and below it (labels and name of the x axis).
pub const MARGINS: (f64, f64, f64) = (40.0, 12.0, 34.0);

/// A linear map from the values `low..high` to SVG units.
#[derive(Clone, Copy)]
pub struct Scale {
    pub low: f64,
    pub high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// If all values are equal, the range becomes 1 wide around them.
    pub fn new((low, high): (f64, f64), (from, to): (f64, f64)) -> Self {
        let (low, high) = if high > low { (low, high) } else { (low - 0.5, low + 0.5) };
        Self { low, high, from, to }
    }

    pub fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// About `n` round values within the scale (1, 2 or 5 times a power of ten apart), each with its label.
    pub fn ticks(&self, n: usize) -> Vec<(f64, String)> {
        let rough = (self.high - self.low) / n.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough * 0.999).unwrap_or(power);
        let decimals = (-step.log10()).ceil().max(0.0) as usize;
        let slack = 1e-9 * (self.high - self.low);
        let first = ((self.low - slack) / step).ceil() as i64;
        let values = (first..).map(|i| i as f64 * step).take_while(|v| *v <= self.high + slack);
        values.map(|v| (v, minus(&format!("{:.decimals$}", v + 0.0)))).collect()
    }
}

/// The lines of an axis at its ticks.
#[derive(Clone, Copy, PartialEq)]
pub enum Lines {
    /// A short mark outside the plot.
    Outside,
    /// A line through the plot, of this class.
    Through(&'static str),
}

pub struct Plot {
    pub x: Scale,
    pub y: Scale,
    pub left: f64,
    pub right: f64,
    pub bottom: f64,
}

impl Plot {
    /// The plot of a panel of this size, with margins to the left, to the right and below, for values within these ranges.
    pub fn new(x: (f64, f64), y: (f64, f64), size: Size, (left, right, below): (f64, f64, f64)) -> Self {
        let (right, bottom) = (size.0 - right, size.1 - below);
        Self { x: Scale::new(x, (left, right)), y: Scale::new(y, (bottom, TOP)), left, right, bottom }
    }

    /// The y axis: about `n` labels, a grid line at each.
    pub fn y_axis(&self, n: usize) -> Markup {
        html! {
            @for (value, label) in self.y.ticks(n) {
                (self.horizontal("grid", value))
                text.tick.end x=(self.left - 6.0) y=(px(self.y.at(value) + 3.5)) { (label) }
            }
        }
    }

    /// The x axis: a label below each tick. Where labels would touch each other, every second one stands lower.
    pub fn x_axis(&self, ticks: &[(f64, String)], lines: Lines) -> Markup {
        let longest = ticks.iter().map(|t| t.1.chars().count()).max().unwrap_or(0) as f64;
        let crowded = 6.2 * longest > (self.right - self.left) / ticks.len().max(1) as f64;
        let (class, from, to) = match lines {
            Lines::Outside => ("axis", self.bottom, self.bottom + 4.0),
            Lines::Through(class) => (class, TOP, self.bottom),
        };
        html! {
            @for (i, (value, label)) in ticks.iter().enumerate() {
                @let (x, lower) = (px(self.x.at(*value)), if crowded && i % 2 == 1 { 13.0 } else { 0.0 });
                line class=(class) x1=(x) x2=(x) y1=(from) y2=(to) {}
                text.tick.mid x=(x) y=(self.bottom + 15.0 + lower) { (label) }
            }
        }
    }

    pub fn x_axis_named(&self, name: &str) -> Markup {
        html! {
            (self.horizontal("axis", self.y.low))
            (self.x_axis(&self.x.ticks(5), Lines::Outside))
            text.tick.mid x=((self.left + self.right) / 2.0) y=(self.bottom + MARGINS.2 - 4.0) { (name) }
        }
    }

    /// A line across the plot at a value of y.
    pub fn horizontal(&self, class: &str, value: f64) -> Markup {
        let y = px(self.y.at(value));
        html! { line class=(class) x1=(self.left) x2=(self.right) y1=(y) y2=(y) {} }
    }

    /// A line from the bottom to the height `top` at a value of x.
    pub fn vertical(&self, class: &str, value: f64, top: f64) -> Markup {
        let x = px(self.x.at(value));
        html! { line class=(class) x1=(x) x2=(x) y1=(top) y2=(self.bottom) {} }
    }

    pub fn path(&self, points: &[(f64, f64)]) -> String {
        let at = |(i, (x, y)): (usize, &(f64, f64))| {
            format!("{}{} {}", if i == 0 { "M" } else { "L" }, px(self.x.at(*x)), px(self.y.at(*y)))
        };
        points.iter().enumerate().map(at).collect()
    }

    /// Cuts off what lies outside the plot.
    pub fn clip(&self, inside: &Markup) -> Markup {
        let (x, width, height) = (self.left, self.right - self.left, self.bottom - TOP);
        html! { svg x=(x) y=(TOP) width=(width) height=(height) viewBox={ (x) " " (TOP) " " (width) " " (height) } { (inside) } }
    }
}

/// A panel with its heading; `label` says in words what it shows.
pub fn panel(heading: &str, label: &str, (width, height): Size, body: &Markup) -> Markup {
    html! {
        div.panel {
            p.heading { (heading) }
            svg viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(label) { (body) }
        }
    }
}

/// A chart: its legend or heading, panels side by side where there is room, what they mean, and their numbers as tables.
pub fn chart(legend: &Markup, panels: &[Markup], caption: &Markup, numbers: &Markup) -> Markup {
    html! {
        figure.chart {
            (legend)
            div.panels { @for panel in panels { (panel) } }
            figcaption { (caption) }
            details { summary { "The numbers" } (numbers) }
        }
    }
}

/// The mark beside a name in a legend: the class of its colour, and a sample, `width` by 14 units, drawn in it.
pub struct Entry<'a> {
    pub name: &'a str,
    pub class: String,
    pub sample: Markup,
    pub width: u32,
}

pub fn legend(entries: &[Entry]) -> Markup {
    html! {
        ul.legend {
            @for entry in entries {
                li { svg class=(entry.class) viewBox={ "0 0 " (entry.width) " 14" } aria-hidden="true" { (entry.sample) } (entry.name) }
            }
        }
    }
}

/// A coordinate, rounded to a tenth of a unit.
pub fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// The text with true minus signs.
pub fn minus(text: &str) -> String {
    text.replace('-', "\u{2212}")
}

/// The least and the greatest value; 0 and 1 if there is none.
pub fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let ends = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if ends.0 <= ends.1 { ends } else { (0.0, 1.0) }
}

/// The extent of some values and a margin of 8 % on both sides; none below a least value of 0.
pub fn roomy(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = extent(values.filter(|v| v.is_finite()));
    let room = 0.08 * (high - low).max(1e-6);
    (if low == 0.0 { low } else { low - room }, high + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, n: usize) -> Vec<String> {
        Scale::new((low, high), (0.0, 1.0)).ticks(n).into_iter().map(|t| t.1).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(labels(0.0, 100.0, 5), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(labels(-0.03, 0.11, 4), ["0.00", "0.05", "0.10"]);
        assert_eq!(labels(-3.0, 3.0, 3), ["\u{2212}2", "0", "2"]);
        assert_eq!(labels(0.0, 0.0, 2), ["\u{2212}0.5", "0.0", "0.5"]);
        assert_eq!(labels(1e-9, 5e-9, 2), ["0.000000002", "0.000000004"]);
    }

    #[test]
    fn a_scale_can_run_downwards() {
        let y = Scale::new((0.0, 2.0), (100.0, 0.0));
        assert_eq!([y.at(0.0), y.at(0.5), y.at(2.0)], [100.0, 75.0, 0.0]);
    }

    #[test]
    fn crowded_labels_alternate() {
        let plot = Plot::new((-0.5, 1.5), (0.0, 1.0), (252.0, 100.0), MARGINS);
        let lowest = |label: &str| {
            let ticks = [(0.0, label.to_owned()), (1.0, label.to_owned())];
            plot.x_axis(&ticks, Lines::Outside).into_string().contains("y=\"94\"")
        };
        assert_eq!([lowest("clip"), lowest("a long name of a metric")], [false, true]);
    }
}
