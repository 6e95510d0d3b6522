//! A table that a person reads: one model, and a writer per format, which escapes what its format reserves. `report` has the
//! writer for HTML.

use crate::{shown::escaped, text};

crate::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Format {
        /// Aligned columns, for a terminal
        Text = "text",
        /// For a README or an issue
        Markdown = "markdown",
        /// A tabular with the rules of booktabs, for a paper
        Latex = "latex",
        /// One unrounded number per cell, for a spreadsheet
        Csv = "csv",
    }
}

#[derive(Clone, Debug, Default)]
pub struct Grid {
    /// Lines above the table. LaTeX has them as a comment, CSV not at all.
    pub title: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<Cell>>,
    /// The first columns hold text and are flush left; the others hold numbers and are flush right.
    pub left: usize,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell(pub Vec<Piece>);

#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Text(String),
    /// A number as it is in the data, and as it is shown.
    Number(f64, String),
    /// The rest is less important, and is below if a format has lines within a cell.
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

    fn shown(&self) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(shown) | Piece::Number(_, shown) => shown.clone(),
            Piece::Break => " ".into(),
        };
        self.0.iter().map(piece).collect()
    }

    /// The cell's first number, unrounded; its text if it has none.
    fn unrounded(&self) -> String {
        let number = |piece: &Piece| if let Piece::Number(value, _) = piece { Some(value.to_string()) } else { None };
        self.0.iter().find_map(number).unwrap_or_else(|| self.shown().trim_end().to_owned())
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new().text(text)
    }
}

impl Grid {
    pub fn write(&self, format: Format) -> String {
        let lines = self.rows.iter().map(|row| row.iter().map(Cell::shown).collect());
        let lines: Vec<Vec<String>> = [self.head.clone()].into_iter().chain(lines).collect();
        match format {
            Format::Text => format!("{}\n{}", self.title, text::table(&lines, self.left)),
            Format::Markdown => self.markdown(&lines),
            Format::Latex => self.latex(&lines),
            Format::Csv => self.csv(),
        }
    }

    fn markdown(&self, lines: &[Vec<String>]) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let cells = |row: &Vec<String>| line(row.iter().map(|c| marked_down(c.trim_end())).collect());
        let rule = (0..self.head.len()).map(|c| if c < self.left { ":--" } else { "--:" }.to_owned()).collect();
        let body: String = lines[1..].iter().map(cells).collect();
        let title: Vec<_> = self.title.lines().map(marked_down).collect();
        format!("{}\n\n{}{}{body}", title.join("\n"), cells(&lines[0]), line(rule))
    }

    /// A rule is drawn where the first cell of a row differs from the one above.
    fn latex(&self, lines: &[Vec<String>]) -> String {
        let line = |row: &Vec<String>| {
            let cells: Vec<_> = row.iter().map(|c| tex(c.trim_end())).collect();
            // After the end of a line, TeX takes a star and a bracket for the arguments of `\\`.
            let begin = if cells[0].starts_with(['[', '*']) { "{}" } else { "" };
            begin.to_owned() + &cells.join(" & ") + " \\\\\n"
        };
        let columns = "l".repeat(self.left) + &"r".repeat(self.head.len() - self.left);
        let mut body = String::new();
        for (i, row) in lines.iter().enumerate().skip(1) {
            body += if i > 1 && row[0] != lines[i - 1][0] { "\\midrule\n" } else { "" };
            body += &line(row);
        }
        format!(
            "% {}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n",
            self.title.replace('\n', "\n% "),
            line(&lines[0])
        )
    }

    fn csv(&self) -> String {
        let line = |cells: Vec<String>| cells.iter().map(|c| field(c)).collect::<Vec<_>>().join(",") + "\n";
        let rows = self.rows.iter().map(|row| line(row.iter().map(Cell::unrounded).collect()));
        line(self.head.clone()) + &rows.collect::<String>()
    }
}

/// A CSV field, in quotes if it needs them (RFC 4180). A quote before text that begins as a formula does keeps a spreadsheet from
/// running it.
fn field(cell: &str) -> String {
    let mut cell = escaped(cell).into_owned();
    let formula = cell.trim_start().starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    if formula && cell != "-" && cell.parse::<f64>().is_err() {
        cell.insert(0, '\'');
    }
    if cell.contains(['"', ',']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

/// Escapes what makes markup of text in a cell: tags, entities, links, code, emphasis. An underscore within a word makes none.
fn marked_down(cell: &str) -> String {
    let cell = escaped(cell);
    let (mut text, mut before) = (String::new(), ' ');
    for (i, c) in cell.char_indices() {
        let next = cell[i + c.len_utf8()..].chars().next();
        let reserved = match c {
            '\\' | '|' | '&' | '`' | '*' => true,
            ']' => next.is_some_and(|next| "([".contains(next)),
            '_' => !before.is_alphanumeric() || next.is_none_or(|next| !next.is_alphanumeric()),
            _ => false,
        };
        text.extend(reserved.then_some('\\'));
        if c == '<' {
            text += "&lt;"
        } else {
            text.push(c)
        }
        before = c;
    }
    text
}

/// Escapes what TeX reserves.
fn tex(cell: &str) -> String {
    let mut text = String::new();
    for c in escaped(cell).chars() {
        match c {
            '%' | '&' | '_' | '#' | '$' | '{' | '}' => text.extend(['\\', c]),
            '\\' => text += "\\textbackslash{}",
            '~' => text += "\\textasciitilde{}",
            '^' => text += "\\textasciicircum{}",
            '<' => text += "\\textless{}",
            '>' => text += "\\textgreater{}",
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_format_reserves_is_escaped() {
        let rows = vec![vec!["a_b|c".into(), "1,5 %  ".into()], vec!["d".into(), "2 \"x\"".into()]];
        let grid = Grid { title: "Two\nlines".into(), head: vec!["".into(), "x^2".into()], rows, left: 1 };
        let shown = |format| grid.write(format);
        assert_eq!(shown(Format::Text), "Two\nlines\n           x^2\na_b|c  1,5 %\nd        2 \"x\"\n");
        let markdown = "Two\nlines\n\n|  | x^2 |\n| :-- | --: |\n| a_b\\|c | 1,5 % |\n| d | 2 \"x\" |\n";
        assert_eq!(shown(Format::Markdown), markdown);
        let latex = "% Two\n% lines\n\\begin{tabular}{lr}\n\\toprule\n & x\\textasciicircum{}2 \\\\\n\\midrule\na\\_b|c & 1,5 \\% \\\\\n\
                     \\midrule\nd & 2 \"x\" \\\\\n\\bottomrule\n\\end{tabular}\n";
        assert_eq!(shown(Format::Latex), latex);
        assert_eq!(shown(Format::Csv), ",x^2\na_b|c,\"1,5 %\"\nd,\"2 \"\"x\"\"\"\n");
    }

    #[test]
    fn nothing_in_a_name_is_run_or_drawn() {
        let names = [
            "=cmd|' /C calc'!A0", "<img src=x>", "[1](x) **a** `b` &lt;", "a\n| b |\u{1b}[31m", "[2cm]", "-1.5", "_x_y",
        ];
        let rows = names.map(|name| vec![name.into()]).to_vec();
        let grid = Grid { head: vec!["@SUM(1)".into()], rows, left: 1, ..Grid::default() };
        let lines = |format| grid.write(format).lines().map(String::from).collect::<Vec<_>>();
        let csv = ["'@SUM(1)", "'=cmd|' /C calc'!A0", "<img src=x>", "[1](x) **a** `b` &lt;", "a\\n| b |\\u{1b}[31m"];
        assert_eq!(lines(Format::Csv)[..5], csv);
        assert_eq!(lines(Format::Csv)[5..], ["[2cm]", "-1.5", "_x_y"]);
        let markdown = lines(Format::Markdown)[4..].join("\n");
        let expected = [
            "| =cmd\\|' /C calc'!A0 |", "| &lt;img src=x> |", "| [1\\](x) \\*\\*a\\*\\* \\`b\\` \\&lt; |",
            "| a\\\\n\\| b \\|\\\\u{1b}[31m |", "| [2cm] |", "| -1.5 |", "| \\_x_y |",
        ];
        assert_eq!(markdown, expected.join("\n"));
        assert!(lines(Format::Latex).contains(&"{}[2cm] \\\\".to_owned()));
        assert!(grid.write(Format::Text).contains("\na\\n| b |\\u{1b}[31m\n"));
    }

    #[test]
    fn a_number_is_rounded_for_people_and_not_for_programs() {
        let cell =
            Cell::new().estimate([0.625, 0.5, 0.75], |x| format!("{:.1}", 100.0 * x), " %").line_break().count(3);
        let grid = Grid { head: vec!["rate".into()], rows: vec![vec![cell]], ..Grid::default() };
        assert_eq!(grid.write(Format::Text), format!("\n{:>21}\n62.5 % [50.0, 75.0] 3\n", "rate"));
        assert_eq!(grid.write(Format::Csv), "rate\n0.625\n");
    }
}
