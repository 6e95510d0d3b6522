//! Text of a known width, in a font that the program carries, so that a sheet looks the same on every machine.

use anyhow::{Context, Result};
use skrifa::instance::{LocationRef, Size};
use skrifa::{FontRef, MetadataProvider, charmap::Charmap, metrics::GlyphMetrics};

/// DejaVu Sans for Latin, Greek and Cyrillic; the licence is in the file beside it.
pub const FONT: &[u8] = include_bytes!("DejaVuSans.ttf");
pub const FAMILY: &str = "DejaVu Sans";

pub struct Face {
    pub size: f32,
    glyphs: GlyphMetrics<'static>,
    charmap: Charmap<'static>,
}

impl Face {
    pub fn new(size: f32) -> Result<Self> {
        let font = FontRef::new(FONT).context("the built-in font is damaged")?;
        let glyphs = font.glyph_metrics(Size::new(size), LocationRef::default());
        Ok(Self { size, glyphs, charmap: font.charmap() })
    }

    /// Width in pixels, without kerning.
    pub fn width(&self, text: &str) -> f32 {
        let glyph = |c| self.charmap.map(c).unwrap_or_default();
        text.chars().map(|c| self.glyphs.advance_width(glyph(c)).unwrap_or(self.size)).sum()
    }

    /// Breaks a text between words into lines of at most `width` pixels; a word that is too long is broken anywhere. Of more than
    /// `lines` lines the first are kept, and the last of these ends in an ellipsis. A letter that the font lacks becomes U+FFFD.
    pub fn wrap(&self, text: &str, width: f32, lines: usize) -> Vec<String> {
        let known = |c: char| if c.is_whitespace() || self.charmap.map(c).is_some() { c } else { '\u{fffd}' };
        let text: String = text.chars().map(known).collect();
        let mut wrapped = vec![];
        let mut line = String::new();
        for word in text.split_whitespace() {
            let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
            if self.width(&longer) <= width {
                line = longer;
                continue;
            }
            if !line.is_empty() {
                wrapped.push(std::mem::take(&mut line));
            }
            for c in word.chars() {
                line.push(c);
                if self.width(&line) > width && line.chars().count() > 1 {
                    line.pop();
                    wrapped.push(std::mem::replace(&mut line, c.to_string()));
                }
            }
        }
        if !line.is_empty() {
            wrapped.push(line);
        }
        if wrapped.len() > lines {
            wrapped.truncate(lines);
            if let Some(last) = wrapped.last_mut() {
                while !last.is_empty() && self.width(&format!("{last}…")) > width {
                    last.pop();
                }
                *last = format!("{}…", last.trim_end());
            }
        }
        wrapped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_and_nothing_is_lost() {
        let face = Face::new(14.0).unwrap();
        let text = "A raccoon wearing formal clothes, wearing a tophat and holding a cane, in the style of Rembrandt";
        let lines = face.wrap(text, 150.0, 99);
        assert!(lines.len() > 3 && lines.iter().all(|l| face.width(l) <= 150.0), "{lines:?}");
        assert_eq!(lines.join(" "), text);
        let cut = face.wrap(text, 150.0, 2);
        assert_eq!((cut.len(), &cut[0]), (2, &lines[0]));
        assert!(cut[1].ends_with('…') && face.width(&cut[1]) <= 150.0, "{cut:?}");
        let long = "a".repeat(100);
        let lines = face.wrap(&long, 150.0, 99);
        assert!(lines.len() > 1 && lines.concat() == long);
        assert!(face.wrap("", 150.0, 3).is_empty());
        assert_eq!(face.wrap("W", 1.0, 3), ["W"]);
        assert_eq!(face.wrap("Ünï Ελλ Рус 日本", 999.0, 3), ["Ünï Ελλ Рус \u{fffd}\u{fffd}"]);
    }

    #[test]
    fn width_is_the_fonts() {
        // Advance of 'm' in DejaVu Sans: 1995 of 2048 units an em.
        assert!((Face::new(2048.0).unwrap().width("mm") - 2.0 * 1995.0).abs() < 0.5);
    }
}
