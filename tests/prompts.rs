//! `prompts`, through the binary.

mod util;

use util::*;

fn read(source: &str, bytes: impl AsRef<[u8]>, args: &[&str]) -> (Vec<String>, arrow::array::RecordBatch) {
    let dir = Dir::new();
    dir.write(source, bytes);
    dir.tool("prompts").args([source, "-o", "p.parquet"]).args(args).ok();
    let table = dir.get("p.parquet");
    (column_text(&table, "prompt"), table)
}

/// From PartiPrompts.tsv; quotes are part of the text.
const PARTI: &str = "Prompt\tCategory\tChallenge\tNote\n\
    bond\tAbstract\tBasic\tBiology-inspired concepts with multiple meanings\n\
    a sign that says \"Deep Learning\"\tArtifacts\tWriting & Symbols\t\n\
    \"Wonders\" of the world\tWorld Knowledge\t\t\n";

#[test]
fn tsv() {
    let (prompts, table) = read("PartiPrompts.tsv", PARTI, &[]);
    assert_eq!(prompts, ["bond", "a sign that says \"Deep Learning\"", "\"Wonders\" of the world"]);
    assert_eq!(column_text(&table, "category"), ["Abstract", "Artifacts", "World Knowledge"]);
    assert_eq!(column_text(&table, "challenge"), ["Basic", "Writing & Symbols", ""]);
    assert_eq!(column(&table, "challenge").null_count(), 1);
    assert_eq!(column_text(&table, "set"), ["PartiPrompts"; 3]);
    // printf bond | sha256sum | cut -c1-16
    assert_eq!(column_text(&table, "prompt_id")[0], "f21dea74d898cfea");
    let names: Vec<_> = table.schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names, ["prompt_id", "prompt", "set", "category", "challenge", "nsfw_prob"]);
}

#[test]
fn a_source_is_what_it_holds_not_what_it_is_called() {
    assert_eq!(read("parti.json", PARTI, &[]).0.len(), 3);
    assert_eq!(read("anime.txt", r#"["a cat", "a \"dog\""]"#, &[]).0, ["a cat", "a \"dog\""]);
    let objects =
        r#"[{"id": "005695-0057", "prompt": "a concept art"}, {"prompt": "a cat", "image_path": ["x"], "rank": [1]}]"#;
    assert_eq!(read("test", objects, &[]).0, ["a concept art", "a cat"]);
    assert_eq!(read("drawbench.tsv", "A red car.\n[a] dog\n", &[]).0, ["A red car.", "[a] dog"]);
}

#[test]
fn line_ends_marks_and_blank_lines() {
    assert_eq!(read("a.txt", "\u{feff}a cat\r\n\r\n  \r\na dog", &[]).0, ["a cat", "a dog"]);
    let (prompts, table) = read("a.tsv", format!("\u{feff}{}", PARTI.replace('\n', "\r\n")), &[]);
    assert_eq!(prompts[0], "bond");
    assert_eq!(column_text(&table, "challenge")[2], "");
    let dir = Dir::new();
    dir.write("a.txt", "a cat\n\n\na dog\na cat\n");
    let run = dir.tool("prompts").args(["a.txt", "-o", "p.parquet"]).ok();
    says(&run.err, &["2 prompts, without 1 duplicate, without 2 blank lines"]);
    let json = dir.tool("prompts").args(["a.txt", "-o", "p.parquet", "--json"]).ok().json();
    assert_eq!(
        json,
        serde_json::json!({
            "prompts": 2, "sets": {"a": 2}, "read": 3, "blank": 2, "duplicates": 1, "other_sets": 0, "beyond_max": 0
        })
    );
}

#[test]
fn captions_of_a_pairs_table() {
    let dir = Dir::new();
    let captions = table(vec![("caption", texts(["b", "a", "b", "c", "a"])), ("jpg_0", texts(["", "", "", "", ""]))]);
    dir.put("pairs.parquet", &captions);
    dir.tool("prompts").args(["pairs.parquet", "-o", "p.parquet"]).ok();
    assert_eq!(column_text(&dir.get("p.parquet"), "prompt"), ["b", "a", "c"]);
    assert_eq!(column_text(&dir.get("p.parquet"), "set"), ["pairs"; 3]);
    let run = dir.tool("prompts").args(["-", "-o", "-", "-q"]).stdin(stream(&captions)).ok();
    assert_eq!(column_text(&run.table(), "prompt"), ["b", "a", "c"]);
    assert_eq!(column_text(&run.table(), "set"), ["stdin"; 3]);
}

#[test]
fn a_prompts_table_keeps_its_columns() {
    let dir = Dir::new();
    let given = table(vec![
        ("prompt", texts(["a", "b", "a"])),
        ("set", texts(["x", "x", "y"])),
        ("category", texts(["k", "l", "m"])),
        ("nsfw_prob", floats([Some(0.25), None, Some(0.5)])),
    ]);
    dir.put("given.parquet", &given);
    dir.tool("prompts").args(["given.parquet", "-o", "p.parquet"]).ok();
    let table = dir.get("p.parquet");
    // The same text in two sets is two prompts.
    assert_eq!(column_text(&table, "prompt"), ["a", "b", "a"]);
    assert_eq!(column_text(&table, "set"), ["x", "x", "y"]);
    assert_eq!(column_text(&table, "category"), ["k", "l", "m"]);
    assert_eq!(column_f32_or_null(&table, "nsfw_prob"), [Some(0.25), None, Some(0.5)]);
    // Read again, it is the same.
    dir.tool("prompts").args(["p.parquet", "-o", "q.parquet"]).ok();
    assert_eq!(dir.get("q.parquet").columns(), table.columns());
    dir.tool("prompts").args(["p.parquet", "-o", "one.parquet", "--set", "z"]).ok();
    assert_eq!(column_text(&dir.get("one.parquet"), "set"), ["z", "z"]);
}

#[test]
fn several_sources_in_order_and_max() {
    let dir = Dir::new();
    dir.write("a.txt", "one\ntwo\n");
    dir.write("b.json", r#"["two", "three"]"#);
    dir.tool("prompts").args(["b.json", "a.txt", "-o", "p.parquet"]).ok();
    let table = dir.get("p.parquet");
    assert_eq!(column_text(&table, "prompt"), ["two", "three", "one", "two"]);
    assert_eq!(column_text(&table, "set"), ["b", "b", "a", "a"]);
    let run = dir.tool("prompts").args(["b.json", "a.txt", "-o", "p.parquet", "--set", "all", "--max", "2"]).ok();
    assert_eq!(column_text(&dir.get("p.parquet"), "prompt"), ["two", "three"]);
    says(&run.err, &["2 prompts, without 1 duplicate, without 1 prompt beyond --max"]);
    let run = dir.tool("prompts").args(["-", "-o", "-", "-q"]).stdin("x\ny\n").ok();
    assert_eq!(column_text(&run.table(), "prompt"), ["x", "y"]);
}

#[test]
fn same_work_same_bytes_and_its_origin() {
    let dir = Dir::new();
    dir.write("a.txt", "a cat\n");
    dir.tool("prompts").args(["a.txt", "-o", "p.parquet", "--max", "3"]).ok();
    dir.tool("prompts").args(["a.txt", "-o", "q.parquet", "--max=3", "--threads", "2", "--seed", "5"]).ok();
    assert_eq!(dir.bytes("p.parquet"), dir.bytes("q.parquet"));
    let origin: serde_json::Value = serde_json::from_str(&dir.get("p.parquet").schema().metadata()["origin"]).unwrap();
    assert_eq!((&origin["tool"], &origin["args"]["max"]), (&"prompts".into(), &3.into()));
    // printf 'a cat\n' | sha256sum
    let sha256 = "565660af565fb2ef659ed8bef1651121288975dbc4c5286185c5e5b065de34ec";
    assert_eq!(origin["inputs"][0]["sha256"], sha256);
}

#[test]
fn only_set_leaves_the_others_out() {
    let dir = Dir::new();
    let sets = ["seen", "validation", "unseen", "seen", "validation"];
    dir.put("all.parquet", &table(vec![("prompt", texts(["a", "b", "c", "d", "e"])), ("set", texts(sets))]));
    let prompts = |args: &[&str]| {
        let run = dir.tool("prompts").args(["all.parquet", "-o", "p.parquet"]).args(args).ok();
        (column_text(&dir.get("p.parquet"), "prompt"), run.err)
    };
    let (some, said) = prompts(&["--only-set", "seen,unseen"]);
    assert_eq!(some, ["a", "c", "d"]);
    says(&said, &["3 prompts, without 2 prompts of other sets"]);
    assert_eq!(prompts(&["--only-set", "unseen", "--only-set", "validation", "--max", "2"]).0, ["b", "c"]);
    let error =
        dir.tool("prompts").args(["all.parquet", "-o", "q.parquet", "--only-set", "seen,partiprompts"]).fails(2);
    says(&error, &["no set 'partiprompts'", "seen, validation, unseen"]);
    assert_eq!(dir.list(), ["all.parquet", "p.parquet"]);
}

#[test]
fn what_is_wrong_is_named() {
    let fails = |bytes: &[u8]| {
        let dir = Dir::new();
        dir.write("src", bytes);
        let error = dir.tool("prompts").args(["src", "-o", "p.parquet"]).fails(2);
        assert_eq!(dir.list(), ["src"]);
        error
    };
    says(&fails(b""), &["src is empty"]);
    says(&fails(b"\n \n"), &["src has no prompts"]);
    says(&fails(b"a cat\nna\xefve\n"), &["src, line 2", "UTF-8"]);
    says(&fails(b"Prompt\tNote\na\tb\nc\td\te\n"), &["src, line 3", "3 fields", "header has 2"]);
    says(&fails(b"[\"a\", {\"text\": \"b\"}]"), &["src, element 1", "'prompt'"]);
    says(&fails(b"[\"a\", \"b\""), &["src begins like JSON"]);
    says(&fails(b"{\"anime\": [\"a\"]}"), &["src, element 0", "'prompt'"]);
    says(&fails(b"Prompts,Category\na,b\n"), &["src", "CSV"]);
    says(&fails(b"\x89PNG\r\n\x1a\n"), &["src, line 1", "UTF-8"]);
    let dir = Dir::new();
    dir.put("t.parquet", &table(vec![("text", texts(["a"]))]));
    let error = dir.tool("prompts").args(["t.parquet", "-o", "p.parquet"]).fails(2);
    says(&error, &["t.parquet", "'caption' is missing", "found: text"]);
    let null = std::sync::Arc::new(arrow::array::StringArray::from(vec![Some("a"), None]));
    dir.put("t.parquet", &table(vec![("caption", null)]));
    let error = dir.tool("prompts").args(["t.parquet", "-o", "p.parquet"]).fails(2);
    says(&error, &["t.parquet, row 1", "null"]);
    let error = dir.tool("prompts").args(["-", "-o", "p.parquet"]).stdin(dir.bytes("t.parquet")).fails(2);
    says(&error, &["standard input is a Parquet file", "name it as a file"]);
    let error = dir.tool("prompts").args(["-", "-o", "p.parquet"]).stdin("").fails(2);
    says(&error, &["standard input is empty"]);
    dir.write("a.txt", "a\n");
    says(&dir.tool("prompts").args(["a.txt", "-o", "p", "--shard", "0/2"]).fails(2), &["--shard"]);
}
