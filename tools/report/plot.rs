//! Small panels of inline SVG: scales, axes, curves. Colours are classes, which the page's style gives by day, by night and on paper.

use maud::{Markup, html};

/// Width and height of a panel in its own units; its text is 11 of them high. So a panel is as wide as it is likely to be shown.
pub type Size = (f64, f64);

/// The edges of the plot within its panel.
const LEFT: f64 = 40.0;
const RIGHT: f64 = 12.0;
pub const TOP: f64 = 10.0;
/// Below the plot: the ticks and what they count.
const FOOT: f64 = 34.0;

/// From values to units.
#[derive(Clone, Copy)]
pub struct Scale {
    pub low: f64,
    pub high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    pub fn new((low, high): (f64, f64), (from, to): (f64, f64)) -> Self {
        let (low, high) = if high > low { (low, high) } else { (low - 0.5, low + 0.5) };
        Self { low, high, from, to }
    }

    pub fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// About `n` round values (1, 2 or 5 times a power of ten apart) within the scale, each with its words.
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

/// The plot of a panel.
pub struct Plot {
    pub x: Scale,
    pub y: Scale,
    pub size: Size,
}

impl Plot {
    pub fn new(x: (f64, f64), y: (f64, f64), size: Size) -> Self {
        Self { x: Scale::new(x, (LEFT, size.0 - RIGHT)), y: Scale::new(y, (size.1 - FOOT, TOP)), size }
    }

    pub fn left(&self) -> f64 {
        LEFT
    }

    pub fn right(&self) -> f64 {
        self.size.0 - RIGHT
    }

    pub fn bottom(&self) -> f64 {
        self.size.1 - FOOT
    }

    /// Grid and ticks of both axes; `x_name` stands below.
    pub fn axes(&self, x_name: &str) -> Markup {
        html! { (self.y_axis(5)) (self.x_axis(x_name)) }
    }

    pub fn y_axis(&self, ticks: usize) -> Markup {
        html! {
            @for (value, words) in self.y.ticks(ticks) {
                line.grid x1=(LEFT) x2=(self.right()) y1=(px(self.y.at(value))) y2=(px(self.y.at(value))) {}
                text.tick.end x=(LEFT - 6.0) y=(px(self.y.at(value) + 3.5)) { (words) }
            }
        }
    }

    pub fn x_axis(&self, name: &str) -> Markup {
        let bottom = self.bottom();
        html! {
            line.axis x1=(LEFT) x2=(self.right()) y1=(bottom) y2=(bottom) {}
            @for (value, words) in self.x.ticks(5) {
                line.axis x1=(px(self.x.at(value))) x2=(px(self.x.at(value))) y1=(bottom) y2=(bottom + 4.0) {}
                text.tick.mid x=(px(self.x.at(value))) y=(bottom + 15.0) { (words) }
            }
            text.tick.mid x=((LEFT + self.right()) / 2.0) y=(self.size.1 - 4.0) { (name) }
        }
    }

    /// A thin line across at a value that means something.
    pub fn mark_y(&self, value: f64) -> Markup {
        let y = px(self.y.at(value));
        html! { line.zero x1=(LEFT) x2=(self.right()) y1=(y) y2=(y) {} }
    }

    /// The `d` of a curve.
    pub fn curve(&self, points: &[(f64, f64)]) -> String {
        let mut d = String::new();
        for (x, y) in points {
            d += if d.is_empty() { "M" } else { "L" };
            d += &format!("{} {}", px(self.x.at(*x)), px(self.y.at(*y)));
        }
        d
    }
}

/// A panel with its heading; `label` says in words what it shows.
pub fn panel(heading: &str, label: &str, (width, height): Size, body: Markup) -> Markup {
    html! {
        div.panel {
            p.heading { (heading) }
            svg viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(label) { (body) }
        }
    }
}

/// A chart: panels side by side where there is room, what they mean, and their numbers as a table.
pub fn chart(legend: Markup, panels: &[Markup], caption: Markup, numbers: Markup) -> Markup {
    html! {
        figure.chart {
            (legend)
            div.panels { @for panel in panels { (panel) } }
            figcaption { (caption) }
            details { summary { "The numbers" } (numbers) }
        }
    }
}

/// A table that scrolls by itself where the screen is narrow.
pub fn table(name: &str, head: Markup, body: Markup) -> Markup {
    html! {
        div.scroll role="region" aria-label=(name) tabindex="0" {
            table { caption { (name) } thead { (head) } tbody { (body) } }
        }
    }
}

/// A coordinate, to a tenth of a unit.
pub fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// A number as it is in the data, with what a reader sees of it.
pub fn data(value: f64, words: String) -> Markup {
    html! { data value=(value) { (words) } }
}

/// A true minus sign.
pub fn minus(text: &str) -> String {
    text.replace('-', "\u{2212}")
}

/// "+0.12" or "−0.12"; "±0.00" where nothing is left of it.
pub fn signed(value: f64, decimals: usize) -> String {
    let size = format!("{:.decimals$}", value.abs());
    let sign =
        if size.bytes().all(|b| matches!(b, b'0' | b'.')) { "±" } else { ["\u{2212}", "+"][usize::from(value > 0.0)] };
    format!("{sign}{size}")
}

/// A name as part of a sentence: "a", "a and b", "a, b and c".
pub fn list<S: AsRef<str>>(names: &[S]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    match &names[..] {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// The smallest and largest of some values; 0 to 1 of none.
pub fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let ends = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if ends.0 <= ends.1 { ends } else { (0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(low: f64, high: f64, n: usize) -> Vec<String> {
        Scale::new((low, high), (0.0, 1.0)).ticks(n).into_iter().map(|t| t.1).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(words(0.0, 100.0, 5), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(words(-0.03, 0.11, 4), ["0.00", "0.05", "0.10"]);
        assert_eq!(words(-3.0, 3.0, 3), ["\u{2212}2", "0", "2"]);
        assert_eq!(words(0.0, 0.0, 2), ["\u{2212}0.5", "0.0", "0.5"]);
        assert_eq!(words(1e-9, 5e-9, 2), ["0.000000002", "0.000000004"]);
    }

    #[test]
    fn a_scale_turns_over_where_asked() {
        let y = Scale::new((0.0, 2.0), (100.0, 0.0));
        assert_eq!([y.at(0.0), y.at(0.5), y.at(2.0)], [100.0, 75.0, 0.0]);
    }

    #[test]
    fn signs_are_true() {
        assert_eq!([signed(0.126, 2), signed(-0.126, 2), signed(-0.001, 2)], ["+0.13", "\u{2212}0.13", "±0.00"]);
    }

    #[test]
    fn names_in_a_sentence() {
        assert_eq!([list(&["a"]), list(&["a", "b"]), list(&["a", "b", "c"])], ["a", "a and b", "a, b and c"]);
    }
}
