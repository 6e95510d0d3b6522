//! Numbers and tables for people.

pub use crate::shown::shown;

/// Lays out rows of cells as aligned lines: the first `left` columns flush left, the others flush right, two spaces between them.
/// No cell reaches into another line.
pub fn table(rows: &[Vec<String>], left: usize) -> String {
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| shown(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |c: usize| rows.iter().filter_map(move |row| row.get(c));
    let widths: Vec<_> = (0..columns).map(|c| cells(c).map(|s| s.chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (c, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            line += if c == 0 { "" } else { "  " };
            line += &if c < left { format!("{cell}{pad}") } else { format!("{pad}{cell}") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// 851293 -> "851,293".
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "1 prompt", "1,632 prompts".
pub fn count(n: usize, thing: &str) -> String {
    format!("{} {thing}{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// "36.6 %"; "-" if `whole` is 0.
pub fn percent(part: usize, whole: usize) -> String {
    if whole == 0 { "-".into() } else { format!("{:.1} %", 100.0 * part as f64 / whole as f64) }
}

/// "14.90 GB", "37.2 MB", "0.62 MB", "812 bytes".
pub fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} bytes"),
        10_000..1_000_000 => format!("{:.2} MB", n as f64 / 1e6),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// "12.3 s", "4 min 5 s", "3 h 20 min", "12 days 3 h".
pub fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    let two = |unit: u64, name: &str, part: u64, part_name: &str| match whole % unit / part {
        0 => format!("{} {name}", whole / unit),
        parts => format!("{} {name} {parts} {part_name}", whole / unit),
    };
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => two(60, "min", 1, "s"),
        3600..172_800 => two(3600, "h", 60, "min"),
        _ => two(86_400, "days", 3600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_characters_not_bytes() {
        let row = |cells: [&str; 3]| cells.map(String::from).to_vec();
        let text = table(&[row(["é", "a", "1"]), row(["long", "bcd", "234"])], 1);
        assert_eq!(text, "é       a    1\nlong  bcd  234\n");
    }

    #[test]
    fn thousands_are_grouped_from_the_right() {
        assert_eq!([0, 999, 1000, 851_293, 1_000_000].map(thousands), ["0", "999", "1,000", "851,293", "1,000,000"]);
        assert_eq!(count(1, "prompt"), "1 prompt");
        assert_eq!(percent(0, 0), "-");
    }

    #[test]
    fn durations_have_two_units() {
        let texts = [0.04, 12.34, 60.0, 245.0, 12000.0, 200_000.0].map(duration);
        assert_eq!(texts, ["0.0 s", "12.3 s", "1 min", "4 min 5 s", "3 h 20 min", "2 days 7 h"]);
    }
}
