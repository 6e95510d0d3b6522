//! Against open_clip and transformers; the ids are made by tests/oracle/tokens.py.

use std::fs;

use std::path::PathBuf;

use serde::Deserialize;

use super::*;

fn from_here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// CLIP's own vocabulary: what a folder without one means.
fn clips_own(style: Style) -> Tokenizer {
    Tokenizer::from_folder(tempfile::tempdir().unwrap().path(), style).unwrap()
}

#[derive(Deserialize)]
struct Row {
    prompt: String,
    /// Without padding.
    open_clip: Vec<u32>,
    hf_fast: Vec<u32>,
    /// Padded to 77, by a tokenizer whose padding is `!`.
    pad_bang_77: Vec<u32>,
}

#[derive(Deserialize)]
struct Rows {
    rows: Vec<Row>,
}

/// The kit cuts open_clip's rows at their first EOS, beyond which no tower reads.
fn read<'a>(name: &str, ids: &'a [u32]) -> &'a [u32] {
    let end = ids.iter().position(|&id| id == 49407).filter(|_| name == "open_clip");
    &ids[..end.unwrap_or(ids.len())]
}

fn check(path: &Path, hf: &Tokenizer, bang: &Tokenizer) {
    let open_clip = clips_own(Style::OpenClip);
    let rows: Rows = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut wrong = 0;
    for row in &rows.rows {
        for (name, ours, theirs) in [
            ("open_clip", open_clip.ids(&row.prompt, 77), &row.open_clip),
            ("hf_fast", hf.ids(&row.prompt, 77), &row.hf_fast),
            ("pad_bang_77", bang.encode(&row.prompt, 77), &row.pad_bang_77),
        ] {
            if read(name, ours.as_ref().unwrap()) != read(name, theirs) {
                wrong += 1;
                println!("{name} {:?}\n  {ours:?}\n  {theirs:?}", row.prompt);
                println!("  cleaned: {:?}", clean::open_clip(&row.prompt));
            }
        }
    }
    assert!(wrong == 0 && rows.rows.len() > 80, "{wrong} of {}", rows.rows.len());
}

/// A folder as SD2 has it: the vocabulary, and `!` as padding.
fn bang_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("vocab.json"), builtin_vocab().to_string()).unwrap();
    fs::write(folder.path().join("merges.txt"), MERGES).unwrap();
    fs::write(folder.path().join("special_tokens_map.json"), r#"{"pad_token": "!"}"#).unwrap();
    folder
}

#[test]
fn ids_are_the_peers() {
    let bang = Tokenizer::from_folder(bang_folder().path(), Style::Hf).unwrap();
    assert_eq!((bang.bos, bang.eos, bang.pad, bang.vocab_size()), (49406, 49407, 0, 49408));
    check(&from_here("../../tests/fixtures/tokens.json"), &clips_own(Style::Hf), &bang);
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn ids_are_the_peers_on_the_parity_kit() {
    let kit = from_here("../../../shared/parity/given");
    let rows = kit.join("expected/tokens.json");
    let folder = |path: &str| Tokenizer::from_folder(&kit.join("models").join(path), Style::Hf).unwrap();
    // With tokenizer.json, and without.
    check(&rows, &folder("pickscore"), &folder("sd21/tokenizer"));
    check(&rows, &folder("sd15/tokenizer"), &folder("sdxl/tokenizer_2"));
    let error = Tokenizer::from_folder(&kit.join("models/nsfw_text_classifier"), Style::Hf).err().unwrap();
    assert!(format!("{error:#}").contains("byte-pair"), "{error:#}");
}

#[test]
fn long_and_empty_texts() {
    for style in [Style::Hf, Style::OpenClip] {
        let tokenizer = clips_own(style);
        assert_eq!(tokenizer.ids("", 77).unwrap(), [49406, 49407]);
        let start = std::time::Instant::now();
        for long in
            ["x".repeat(10_000), "é".repeat(10_000), "&amp;".repeat(2_000), "Ã© ".repeat(3_333), "!".repeat(10_000)]
        {
            let ids = tokenizer.encode(&long, 77).unwrap();
            assert_eq!((ids.len(), ids[0], ids.contains(&49407)), (77, 49406, true));
        }
        println!("{style:?}: {:?}", start.elapsed());
        assert!(start.elapsed().as_secs() < 5);
        let start = std::time::Instant::now();
        let huge = " ".repeat(2_000_000) + &"caté ".repeat(10_000_000);
        assert_eq!(tokenizer.ids(&huge, 77).unwrap(), tokenizer.ids(&"caté ".repeat(100), 77).unwrap());
        assert!(start.elapsed().as_secs() < 10);
        assert_eq!(tokenizer.ids("a b c d", 4).unwrap().len(), 4);
        assert!(tokenizer.ids("a", 1).is_err());
    }
}

#[test]
fn a_mark_whose_capital_is_a_letter_is_in_no_word() {
    let open_clip = clips_own(Style::OpenClip);
    let words = |text: &str| open_clip.ids(text, 77).unwrap();
    assert_eq!(words("a\u{345}"), [49406, 320, 49407]);
    assert_eq!(words("a\u{345}B"), words("a b"));
    assert_eq!(words("\u{345}"), words(""));
}

#[test]
fn a_damaged_vocabulary_is_an_error() {
    let folder = bang_folder();
    fs::write(folder.path().join("vocab.json"), "{\"a\": 0}").unwrap();
    let error = format!("{:#}", Tokenizer::from_folder(folder.path(), Style::Hf).err().unwrap());
    assert!(error.contains("lacks '<|startoftext|>'"), "{error}");
    fs::write(folder.path().join("vocab.json"), "{").unwrap();
    assert!(Tokenizer::from_folder(folder.path(), Style::Hf).is_err());
}

/// Where the decoder is damaged, the crate panics.
#[test]
fn a_damaged_tokenizer_json_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), r#"{"version": "1.0", "decoder": {"type": "ByteLevel" 1"#).unwrap();
    for error in [
        Tokenizer::from_folder(folder.path(), Style::Hf).err().unwrap(),
        wordpiece::from_folder(folder.path(), 16).err().unwrap(),
    ] {
        assert!(
            format!("{error:#}").contains("tokenizer.json is not a tokenizer: a part of it is damaged"),
            "{error:#}"
        );
    }
}
