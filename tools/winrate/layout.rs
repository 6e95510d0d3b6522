//! A table as text, Markdown, LaTeX or CSV.

use pipe::text;

pipe::names! {
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

/// A table before it is laid out.
pub struct Grid {
    /// Lines above the table; a comment in LaTeX, left out in CSV.
    pub title: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// Number of columns with words, flush left; the others hold numbers. LaTeX draws a rule where the first column changes.
    pub left: usize,
}

impl Grid {
    pub fn show(&self, format: Format) -> String {
        match format {
            Format::Text => {
                let all: Vec<_> = [&self.head].into_iter().chain(&self.rows).cloned().collect();
                format!("{}\n{}", self.title, text::table(&all, self.left))
            }
            Format::Markdown => self.markdown(),
            Format::Latex => self.latex(),
            Format::Csv => {
                let line =
                    |row: &Vec<String>| row.iter().map(|c| quoted(c.trim_end())).collect::<Vec<_>>().join(",") + "\n";
                [&self.head].into_iter().chain(&self.rows).map(line).collect()
            }
        }
    }

    fn markdown(&self) -> String {
        let line = |row: &[String]| format!("| {} |\n", row.join(" | "));
        let cells = |row: &Vec<String>| line(&row.iter().map(|c| c.trim_end().replace('|', "\\|")).collect::<Vec<_>>());
        let rule: Vec<_> = (0..self.head.len()).map(|c| if c < self.left { ":--" } else { "--:" }.to_owned()).collect();
        let body: String = self.rows.iter().map(cells).collect();
        format!("{}\n\n{}{}{body}", self.title, cells(&self.head), line(&rule))
    }

    fn latex(&self) -> String {
        let line =
            |row: &Vec<String>| row.iter().map(|c| escaped(c.trim_end())).collect::<Vec<_>>().join(" & ") + " \\\\\n";
        let columns = "l".repeat(self.left) + &"r".repeat(self.head.len() - self.left);
        let mut body = String::new();
        for (i, row) in self.rows.iter().enumerate() {
            if i > 0 && row[0] != self.rows[i - 1][0] {
                body += "\\midrule\n";
            }
            body += &line(row);
        }
        format!(
            "% {}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n",
            self.title.replace('\n', "\n% "),
            line(&self.head)
        )
    }
}

/// A CSV field, in quotes if it needs them (RFC 4180).
fn quoted(cell: &str) -> String {
    if cell.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

/// Escapes the characters that TeX reserves.
fn escaped(cell: &str) -> String {
    let mut text = String::new();
    for c in cell.chars() {
        match c {
            '%' | '&' | '_' | '#' | '$' | '{' | '}' => text.extend(['\\', c]),
            '\\' => text += "\\textbackslash{}",
            '~' => text += "\\textasciitilde{}",
            '^' => text += "\\textasciicircum{}",
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let row = |cells: [&str; 2]| cells.map(String::from).to_vec();
        let rows = vec![row(["a_b|c", "1,5 %  "]), row(["d", "2 \"x\""])];
        Grid { title: "Two\nlines".into(), head: row(["", "x^2"]), rows, left: 1 }
    }

    #[test]
    fn what_a_format_reserves_is_escaped() {
        assert_eq!(grid().show(Format::Text), "Two\nlines\n           x^2\na_b|c  1,5 %\nd        2 \"x\"\n");
        let markdown = "Two\nlines\n\n|  | x^2 |\n| :-- | --: |\n| a_b\\|c | 1,5 % |\n| d | 2 \"x\" |\n";
        assert_eq!(grid().show(Format::Markdown), markdown);
        let latex = "% Two\n% lines\n\\begin{tabular}{lr}\n\\toprule\n & x\\textasciicircum{}2 \\\\\n\\midrule\na\\_b|c & 1,5 \\% \\\\\n\
                     \\midrule\nd & 2 \"x\" \\\\\n\\bottomrule\n\\end{tabular}\n";
        assert_eq!(grid().show(Format::Latex), latex);
        assert_eq!(grid().show(Format::Csv), ",x^2\na_b|c,\"1,5 %\"\nd,\"2 \"\"x\"\"\"\n");
    }
}
