//! The HTML writer of a `Grid`, and how numbers are shown on the page.

use maud::{Markup, html};
use pipe::grid::{Cell, Grid, Piece};

use crate::plot::minus;

/// A grid as a table. Each number keeps its unrounded value in a `data` element.
pub fn table(grid: &Grid) -> Markup {
    let head = html! { tr { @for (i, head) in grid.head.iter().enumerate() { th.num[i >= grid.left] scope="col" { (head) } } } };
    let body = html! {
        @for row in &grid.rows {
            tr {
                @for (i, content) in row.iter().enumerate() {
                    @if i == 0 { th.num[grid.left == 0] scope="row" { (cell(content)) } }
                    @else { td.num[i >= grid.left] { (cell(content)) } }
                }
            }
        }
    };
    frame(&grid.title, &head, &body)
}

/// A table that scrolls by itself where the screen is narrow.
pub fn frame(title: &str, head: &Markup, body: &Markup) -> Markup {
    html! {
        div.scroll role="region" aria-label=(title) tabindex="0" {
            table { caption { (title) } thead { (head) } tbody { (body) } }
        }
    }
}

fn cell(cell: &Cell) -> Markup {
    let pieces = |pieces: &[Piece]| {
        html! {
            @for piece in pieces {
                @match piece {
                    Piece::Text(text) => (text),
                    Piece::Number(value, shown) => (data(*value, shown)),
                    Piece::Break => {}
                }
            }
        }
    };
    let (first, below) = cell.0.split_at(cell.0.iter().position(|p| *p == Piece::Break).unwrap_or(cell.0.len()));
    html! { (pieces(first)) @if !below.is_empty() { br; small { (pieces(below)) } } }
}

/// A number as it is in the data, and as a reader sees it.
pub fn data(value: f64, shown: &str) -> Markup {
    html! { data value=(value) { (shown) } }
}

/// "64.6" of the share 0.646.
pub fn points(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

pub fn percent(share: f64) -> String {
    points(share) + " %"
}

/// "[58.2, 70.5]", in percent.
pub fn interval(low: f64, high: f64) -> String {
    format!("[{}, {}]", points(low), points(high))
}

/// "+0.12" or "−0.12"; "±0.00" where rounding leaves nothing.
pub fn signed(value: f64, decimals: usize) -> String {
    let size = format!("{:.decimals$}", value.abs());
    let zero = size.bytes().all(|b| matches!(b, b'0' | b'.'));
    let sign = if zero {
        "±"
    } else if value > 0.0 {
        "+"
    } else {
        "-"
    };
    minus(sign) + &size
}

/// Decimals that tell apart scores whose standard deviation is `sd`.
pub fn decimals(sd: f64) -> usize {
    if sd > 0.0 { (2.0 - sd.log10().floor()).clamp(1.0, 6.0) as usize } else { 4 }
}

/// Names as a part of a sentence: "a", "a and b", "a, b and c".
pub fn list<S: AsRef<str>>(names: &[S]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    match &names[..] {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_true() {
        assert_eq!([signed(0.126, 2), signed(-0.126, 2), signed(-0.001, 2)], ["+0.13", "\u{2212}0.13", "±0.00"]);
    }

    #[test]
    fn names_in_a_sentence() {
        assert_eq!([list(&["a"]), list(&["a", "b"]), list(&["a", "b", "c"])], ["a", "a and b", "a, b and c"]);
    }

    #[test]
    fn a_cell_keeps_its_numbers_and_escapes_its_text() {
        let content = Cell::new().number(0.25, "<25").text(" & more").line_break().count(3);
        let html = cell(&content).into_string();
        assert_eq!(html, r#"<data value="0.25">&lt;25</data> &amp; more<br><small><data value="3">3</data></small>"#);
    }
}
