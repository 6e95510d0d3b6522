use super::*;

/// `ftfy.fix_text` of 6.3.1: its own examples, and what captions hold.
#[test]
fn fix_text_is_ftfys() {
    for (text, fixed) in [
        ("âœ” No problems", "✔ No problems"),
        ("&macr;\\_(ã\u{83}\u{84})_/&macr;", "¯\\_(ツ)_/¯"),
        ("Broken text&hellip; it&#x2019;s ﬂubberiﬁc!", "Broken text… it's flubberific!"),
        ("ＬＯＵＤ　ＮＯＩＳＥＳ", "LOUD NOISES"),
        ("voilÃ  le travail", "voilà le travail"),
        ("P&EACUTE;REZ &nTILDE; BUNDESSTRA&SZLIG;E", "PÉREZ &nTILDE; BUNDESSTRASSE"),
        ("<b>&amp;</b>\n&amp;", "<b>&amp;</b>\n&amp;"),
        ("â€œ like this â€\u{fffd}", "\" like this \u{fffd}"),
        ("\u{1b}[36;44mI'm blue\u{1b}[0m\r\nnext\u{85}", "I'm blue\nnext…"),
        ("Ｕﾀｰﾝ cafe\u{301}", "Uターン café"),
    ] {
        assert_eq!(fix_text(text), fixed, "{text:?}");
    }
}

#[test]
fn entities_are_pythons() {
    // html.unescape
    for (text, fixed) in [
        ("&notit; &notin; &amp", "¬it; ∉ &"),
        ("&#0;&#x80;&#xd800;&#1;&#x1F600;&#99999999999;", "\u{fffd}€\u{fffd}😀\u{fffd}"),
        ("a & b &; &nosuch; &Tab;", "a & b &; &nosuch; \t"),
    ] {
        assert_eq!(entities::unescape(text), fixed, "{text:?}");
    }
}

#[test]
fn deeply_nested_references_take_no_longer_than_their_text() {
    for (once, again, end) in [("&amp;", "amp;", "&"), ("&#38;", "#38;", "&"), ("&amp;", "amp;", "é")] {
        let last = if end == "é" { "eacute;" } else { "" };
        let start = std::time::Instant::now();
        assert_eq!(fix_text(&format!("{once}{}{last}", again.repeat(200_000))), end);
        assert!(start.elapsed().as_secs() < 10);
        for n in 0..20 {
            assert_eq!(fix_text(&format!("x {once}{}{last} y", again.repeat(n))), format!("x {end} y"));
        }
    }
    assert_eq!(entities::unescape_fully("&am&#112;; &a&amp;b; &&amp;&lt;; &nosuch;"), "& &a&b; &&<; &nosuch;");
}
