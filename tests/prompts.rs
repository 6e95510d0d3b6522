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
fn a_source_is_recognised_by_its_content() {
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

/// As pandas writes them: an index before the header, quotes where a field needs them.
#[test]
fn csv() {
    let drawbench = ",Prompts,Category\r\n0,A red car.,Colors\r\n1,\"A \"\"cat\"\", a dog\nin two lines\",Counting\r\n";
    let (prompts, table) = read("drawbench.csv", drawbench, &[]);
    assert_eq!(prompts, ["A red car.", "A \"cat\", a dog\nin two lines"]);
    assert_eq!(column_text(&table, "category"), ["Colors", "Counting"]);
    assert_eq!(read("one.csv", "prompt\n\"A cat, a dog\"\nA bird\n", &[]).0, ["A cat, a dog", "A bird"]);
    assert_eq!(read("semicolons", "\u{feff}id;prompt\n1;a cat, a dog\n", &[]).0, ["a cat, a dog"]);
}

/// PartiPrompts on the hub is also Parquet, with capitals; other tables have numbers where a text is read.
#[test]
fn columns_of_other_tables() {
    let dir = Dir::new();
    let parti = table(vec![
        ("Prompt", texts(["bond", "element"])),
        ("Category", texts(["Abstract", "Abstract"])),
        ("Challenge", floats([Some(2.5), Some(3.0)])),
    ]);
    dir.put("parti.parquet", &parti);
    dir.tool("prompts").args(["parti.parquet", "-o", "p.parquet"]).ok();
    let table = dir.get("p.parquet");
    assert_eq!(column_text(&table, "prompt"), ["bond", "element"]);
    assert_eq!(column_text(&table, "category"), ["Abstract", "Abstract"]);
    assert_eq!(column_text(&table, "challenge"), ["2.5", "3"]);
}

/// No name of a file reaches a terminal as it is, and no password of a URL at all.
#[test]
fn messages_are_clean() {
    let dir = Dir::new();
    let wild = "\u{1b}]0;title\u{7}\u{1b}[31mred\nprompts: forged";
    dir.put("p.parquet", &table(vec![("prompt", texts(["a"])), ("set", texts([wild]))]));
    let run = dir.tool("prompts").args(["p.parquet", "-o", "q.parquet"]).ok();
    says(&run.err, &["\\u{1b}]0;title\\u{7}\\u{1b}[31mred\\nprompts: forged"]);
    assert!(run.err.lines().all(|line| !line.chars().any(char::is_control) && !line.starts_with("prompts: forged")));
    let error = dir.tool("prompts").args(["p.parquet", "-o", "q.parquet", "--only-set", "x"]).fails(2);
    assert!(!error.chars().any(char::is_control), "{error}");
    let clap = dir.tool("prompts").args(["p.parquet", "-o", "q.parquet", "--max", "\u{1b}[31m7"]).exits(2).err;
    assert!(!clap.contains('\u{1b}') && clap.contains("--max"), "{clap}");
    for url in ["https://me:SECRET@127.0.0.1:9/x", "s3://KEY:SEC/RET@bucket/k"] {
        let error = dir.tool("prompts").args([url, "-o", "q.parquet"]).exits(2).err;
        assert!(!error.contains("SEC") && error.contains("***@"), "{error}");
        let error = dir.tool("prompts").args(["p.parquet", "-o", url]).exits(2).err;
        assert!(!error.contains("SEC") && error.contains("***@"), "{error}");
    }
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
    // A set of which --max leaves nothing is named.
    let said = prompts(&["--only-set", "seen,unseen", "--max", "1"]).1;
    says(&said, &["no prompt of the set 'unseen'", "first 1"]);
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
    says(&fails(b"Prompt\tNote\na\tb\nc\td\te\n"), &["src: line 3", "3 fields", "header has 2"]);
    says(&fails(b"[\"a\", {\"text\": \"b\"}]"), &["src, element 1", "'prompt'"]);
    says(&fails(b"[\"a\", \"b\""), &["src begins like JSON"]);
    says(&fails(b"{\"prompt\": \"a\", \"set\": \"s\", \"prompt\": \"b\"}"), &["src", "\"prompt\"", "twice"]);
    says(&fails(b"[{\"prompt\": \"a\", \"prompt\": \"b\"}]"), &["src", "\"prompt\"", "twice"]);
    says(&fails(b"[{\"prompt\": true}]"), &["src, element 0", "'prompt'"]);
    says(&fails(b"prompt,style,Prompt\na,b,c\n"), &["src", "column 2", "'Prompt'", "as another"]);
    says(&fails(b"{\"anime\": [\"a\"]}"), &["src, element 0", "'prompt'"]);
    says(&fails(b"id,text\n1,a cat\n2,\"a cat, a dog\"\n"), &["src", "CSV", "id, text", "`prompt`"]);
    says(&fails(b"id;text\n1;a cat\n2;a dog\n"), &["src", "CSV", "id, text"]);
    says(&fails(b"prompt,style\n\"a cat,x\na dog,y\n"), &["src: line 2", "never closed"]);
    says(&fails(b"\x89PNG\r\n\x1a\n\0\0\0"), &["src is an image", "`pairs --images"]);
    says(&fails(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), &["src", "`git lfs pull`"]);
    says(&fails(b"ORC\0"), &["src is an ORC file", "Parquet"]);
    says(&fails(&vec![0; 1 << 17]), &["src is neither text nor a table"]);
    says(&fails(&[b"prompt,style\n\"", &[b'x'; 1 << 21][..], b"\",flat\n"].concat()), &["src", "1048576"]);
    let dir = Dir::new();
    dir.put("t.parquet", &table(vec![("text", texts(["a"]))]));
    let error = dir.tool("prompts").args(["t.parquet", "-o", "p.parquet"]).fails(2);
    says(&error, &["t.parquet", "'prompt' is missing", "found: text"]);
    let null = std::sync::Arc::new(arrow::array::StringArray::from(vec![Some("a"), None]));
    dir.put("t.parquet", &table(vec![("caption", null)]));
    let error = dir.tool("prompts").args(["t.parquet", "-o", "p.parquet"]).fails(2);
    says(&error, &["t.parquet, row 1", "null"]);
    let error = dir.tool("prompts").args(["-", "-o", "p.parquet"]).stdin(dir.bytes("t.parquet")).fails(2);
    says(&error, &["standard input is a Parquet file", "name the file"]);
    let error = dir.tool("prompts").args(["-", "-o", "p.parquet"]).stdin("").fails(2);
    says(&error, &["standard input is empty"]);
    dir.write("a.txt", "a\n");
    says(&dir.tool("prompts").args(["a.txt", "-o", "p", "--shard", "0/2"]).exits(2).err, &["--shard"]);
}

/// `tests/oracle/safe.py` made it: a tiny classifier, and what transformers says with it.
#[cfg(feature = "nets")]
mod safe {
    use std::path::{Path, PathBuf};

    use serde_json::Value;

    use super::*;
    use crate::util::world::parity;

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/safe")
    }

    /// Prompts without blank ones, which no source gives, and their probabilities.
    fn expected(path: &Path, probability: impl Fn(&Value) -> f64) -> (Vec<String>, Vec<f64>) {
        let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut seen = std::collections::HashSet::new();
        let text = |r: &Value| r["prompt"].as_str().unwrap().to_owned();
        let rows = rows.iter().filter(|r| !text(r).trim().is_empty() && seen.insert(text(r)));
        rows.map(|r| (text(r), probability(r))).unzip()
    }

    fn check(model: &Path, prompts: &[String], wanted: &[f64]) {
        let dir = Dir::new();
        dir.write("all.json", serde_json::to_string(prompts).unwrap());
        let run = |more: &[&str]| {
            let args = ["all.json", "-o", "p.parquet", "--safe", model.to_str().unwrap()];
            let json = dir.tool("prompts").args(args).args(more).args(["--json"]).ok().json();
            (dir.get("p.parquet"), json)
        };
        let (all, counts) = run(&["--threshold", "1"]);
        assert_eq!(column_text(&all, "prompt"), prompts);
        for ((ours, theirs), prompt) in column_f32(&all, "nsfw_prob").into_iter().zip(wanted).zip(prompts) {
            assert!((f64::from(ours) - theirs).abs() < 5e-5, "{prompt:?}: {ours}, expected {theirs}");
        }
        assert_eq!((&counts["kept"], &counts["dropped"]), (&prompts.len().into(), &0.into()));
        let safe: Vec<_> =
            prompts.iter().zip(wanted).filter(|(_, p)| **p <= 0.5).map(|(text, _)| text.clone()).collect();
        assert!(!safe.is_empty() && safe.len() < prompts.len());
        let (some, counts) = run(&[]);
        assert_eq!(column_text(&some, "prompt"), safe);
        assert!(column_f32(&some, "nsfw_prob").iter().all(|&p| p <= 0.5));
        assert_eq!(counts["dropped"], prompts.len() - safe.len());
        let (two, counts) = run(&["--max", "2"]);
        assert_eq!(column_text(&two, "prompt"), safe[..2]);
        let left = prompts.iter().position(|p| *p == safe[1]).unwrap() + 1;
        assert_eq!((&counts["beyond_max"], &counts["dropped"]), (&(prompts.len() - left).into(), &(left - 2).into()));
        let origin: Value = serde_json::from_str(&two.schema().metadata()["origin"]).unwrap();
        assert!(origin["models"]["safe"].as_str().unwrap().starts_with("sha256:"));
        assert_eq!(origin["args"]["threshold"], 0.5);
    }

    #[test]
    fn probabilities_are_transformers() {
        let (prompts, wanted) = expected(&fixture().join("expected.json"), |r| r["nsfw_prob"].as_f64().unwrap());
        check(&fixture(), &prompts, &wanted);
    }

    #[test]
    #[ignore = "needs ../shared/parity/given"]
    fn probabilities_are_those_of_the_parity_kit() {
        let (prompts, wanted) = expected(&parity("expected/nsfw.json"), |r| r["probs"][1].as_f64().unwrap());
        check(&parity("models/nsfw_text_classifier"), &prompts, &wanted);
    }

    #[test]
    fn counts_are_printed() {
        let dir = Dir::new();
        dir.write("a.txt", "a photo of a cat\nThe Dogs!\nnaïve café\na red house-ing flower\n");
        let safe = fixture();
        let args = ["a.txt", "-o", "p.parquet", "--safe", safe.to_str().unwrap()];
        says(&dir.tool("prompts").args(args).ok().err, &["2 prompts, without 2 prompts that are not safe"]);
        // A prompts table is filtered as well, and its old probabilities go.
        let old = table(vec![("prompt", texts(["naïve café"])), ("nsfw_prob", floats([Some(0.9)]))]);
        dir.put("old.parquet", &old);
        let args = ["old.parquet", "-o", "p.parquet", "--safe", safe.to_str().unwrap()];
        dir.tool("prompts").args(args).ok();
        assert!(column_f32(&dir.get("p.parquet"), "nsfw_prob")[0] < 0.1);
    }

    /// The filter watches for signals and looks for them between its batches; after it nobody looks any more.
    #[test]
    fn a_signal_after_the_filter_ends_the_program() {
        use std::{io::Read, os::unix::process::ExitStatusExt, process::Stdio};

        let dir = Dir::new();
        // More than a pipe holds, so that the program cannot finish while nobody reads.
        let prompts: Vec<String> = (0..64).map(|i| format!("{i}{}", " cat".repeat(1000))).collect();
        dir.write("a.txt", prompts.join("\n"));
        let safe = fixture();
        let args = ["a.txt", "-q", "-o", "-", "--threshold", "1", "--safe", safe.to_str().unwrap()];
        let mut tool = dir.tool("prompts").args(args);
        let mut child = tool.command.stdout(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdout.take().unwrap();
        pipe.read_exact(&mut [0; 100]).unwrap(); // the table has begun, so the filter has ended
        let kill = ["-INT", &child.id().to_string()];
        assert!(std::process::Command::new("kill").args(kill).status().unwrap().success());
        pipe.read_to_end(&mut vec![]).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(2));
    }

    #[test]
    fn another_model_is_refused() {
        let dir = Dir::new();
        dir.write("a.txt", "a cat\n");
        std::fs::create_dir(dir.path("model")).unwrap();
        for name in ["config.json", "vocab.txt", "model.safetensors"] {
            std::fs::copy(fixture().join(name), dir.path("model").join(name)).unwrap();
        }
        let fails = |more: &[&str]| {
            let args = ["a.txt", "-o", "p.parquet", "--safe", "model"];
            let error = dir.tool("prompts").args(args).args(more).fails(2);
            assert!(!dir.path("p.parquet").exists());
            error
        };
        says(&fails(&["--threshold", "1.5"]), &["--threshold 1.5 is not a probability"]);
        let config = String::from_utf8(dir.bytes("model/config.json")).unwrap();
        for (from, to, parts) in [
            ("\"distilbert\"", "\"roberta\"", ["model_type = \"roberta\"", "expected distilbert"]),
            ("\"NSFW\"", "\"RUDE\"", ["none of its classes is NSFW", "SFW, RUDE"]),
            ("single_label", "multi_label", ["problem_type = \"multi_label_classification\"", "model/config.json"]),
            ("\"gelu\"", "\"tanh\"", ["activation = \"tanh\"", "gelu or relu"]),
            ("\"dim\": 16", "\"dim\": 8", ["word_embeddings.weight' has shape [", ", 16]"]),
            ("\"vocab_size\": ", "\"vocab_size\": 1, \"_x\": ", ["the tokenizer has", "different models"]),
        ] {
            assert!(config.contains(from), "{from}");
            dir.write("model/config.json", config.replace(from, to));
            says(&fails(&[]), &parts);
        }
        dir.write("model/config.json", &config);
        std::fs::remove_file(dir.path("model/vocab.txt")).unwrap();
        says(&fails(&[]), &["cannot read model/vocab.txt"]);
        let error = dir.tool("prompts").args(["a.txt", "-o", "p.parquet", "--safe", "absent"]).fails(2);
        says(&error, &["absent"]);
    }
}

/// The files that benchmarks publish.
#[test]
#[ignore = "needs ../shared/prompts"]
fn published_sources() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/prompts");
    for (name, count, last) in [
        ("PartiPrompts.tsv", 1632, "a series of musical notes on a computer screen"),
        ("imagereward-benchmark-prompts.json", 100, ""),
        ("pickapic_test.txt", 2048, ""),
    ] {
        let dir = Dir::new();
        dir.tool("prompts").args([folder.join(name).to_str().unwrap(), "-o", "p.parquet"]).ok();
        let prompts = column_text(&dir.get("p.parquet"), "prompt");
        assert_eq!(prompts.len(), count, "{name}");
        assert!(prompts[count - 1].contains(last), "{name}: {}", prompts[count - 1]);
    }
}
