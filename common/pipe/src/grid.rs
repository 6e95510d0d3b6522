//! A table that a person reads: cells of text and numbers, apart from the format in which they are written.

/// A table before it is written.
#[derive(Clone, Debug, Default)]
pub struct Grid {
    pub title: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<Cell>>,
    /// The first columns hold text and are flush left; the others hold numbers and are flush right.
    pub left: usize,
}

/// The content of one cell, from left to right.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell(pub Vec<Piece>);

#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Text(String),
    /// A number as it is in the data, and as it is shown.
    Number(f64, String),
    /// What follows is less important, and stands below where a format has lines within a cell.
    Break,
}

impl Cell {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.0.push(Piece::Text(text.into()));
        self
    }

    pub fn number(mut self, value: f64, shown: impl Into<String>) -> Self {
        self.0.push(Piece::Number(value, shown.into()));
        self
    }

    /// A whole number.
    pub fn count(self, n: usize) -> Self {
        self.number(n as f64, n.to_string())
    }

    pub fn line_break(mut self) -> Self {
        self.0.push(Piece::Break);
        self
    }

    /// A value and the ends of its interval, "64.6 % [58.2, 70.5]", each as `show` writes it; `unit` follows the value.
    pub fn estimate(self, [value, low, high]: [f64; 3], show: impl Fn(f64) -> String, unit: &str) -> Self {
        let value = self.number(value, show(value)).text(format!("{unit} ["));
        value.number(low, show(low)).text(", ").number(high, show(high)).text("]")
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new().text(text)
    }
}
