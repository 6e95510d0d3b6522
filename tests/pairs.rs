//! `pairs`, through the binary: everything that people keep preferences in becomes the same table.

mod util;

use std::{fs, io::Write, sync::Arc};

use arrow::array::{ArrayRef, AsArray, BinaryArray, RecordBatch, StructArray};
use arrow::datatypes::{DataType, Field, UInt32Type};
use serde_json::{Value, json};
use util::*;

/// The smallest PNG of one grey pixel, told apart by a byte after its end, as an image of number `n`.
fn png(n: u8) -> Vec<u8> {
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&[n]).unwrap();
    bytes
}

/// A folder with the images 0.png to 5.png, in images/.
fn world() -> Dir {
    let dir = Dir::new();
    fs::create_dir(dir.path("images")).unwrap();
    (0..6).for_each(|n| drop(dir.write(&format!("images/{n}.png"), png(n))));
    dir
}

/// Caption, the numbers of the two images, and the label of each row.
fn read(table: &RecordBatch) -> Vec<(String, [u8; 2], Option<f32>)> {
    let number = |name: &str, row: usize| {
        let image = column(table, name).as_binary::<i32>().value(row).to_vec();
        (0..6).find(|n| png(*n) == image).unwrap()
    };
    let (captions, labels) = (column_text(table, "caption"), column_f32_or_null(table, "label_0"));
    let row = |i: usize| (captions[i].clone(), [number("jpg_0", i), number("jpg_1", i)], labels[i]);
    (0..table.num_rows()).map(row).collect()
}

fn row(caption: &str, images: [u8; 2], label: f32) -> (String, [u8; 2], Option<f32>) {
    (caption.to_owned(), images, Some(label))
}

fn pairs(dir: &Dir, args: &[&str]) -> Vec<(String, [u8; 2], Option<f32>)> {
    dir.tool("pairs").args(args).args(["-o", "out.parquet", "-q"]).ok();
    read(&dir.get("out.parquet"))
}

#[test]
fn lists_of_every_kind_are_read_with_their_images() {
    let dir = world();
    let expected = [row("a cat, black", [0, 1], 1.0), row("a dog", [2, 3], 1.0)];
    dir.write(
        "a.csv",
        "prompt,winner,loser\n\"a cat, black\",images/0.png,images/1.png\na dog,images/2.png,images/3.png\n",
    );
    dir.write(
        "b.tsv",
        "caption\tchosen\trejected\na cat, black\timages/0.png\timages/1.png\na dog\timages/2.png\timages/3.png\n",
    );
    let records = [
        json!({ "prompt": "a cat, black", "path1": "images/0.png", "path2": "images/1.png", "confidence": null, "model1": "x" }),
        json!({ "prompt": "a dog", "path1": "images/2.png", "path2": "images/3.png", "choice_dist": [9, 1] }),
    ];
    dir.write("hpdv3.json", json!(records).to_string());
    dir.write("c.jsonl", records.each_ref().map(Value::to_string).join("\n"));
    for list in ["a.csv", "b.tsv", "hpdv3.json", "c.jsonl"] {
        assert_eq!(pairs(&dir, &[list]), expected, "{list}");
    }
    assert_eq!(pairs(&dir, &["a.csv", "c.jsonl"]).len(), 4);
    assert_eq!(pairs(&dir, &["a.csv", "c.jsonl", "--max", "3"]).len(), 3);
}

#[test]
fn labels_and_rankings_become_pairs() {
    let dir = world();
    let list = json!([
        { "prompt": "a", "image_path": ["images/0.png", "images/1.png"], "human_preference": [0, 1] },
        { "prompt": "b", "file_path": ["images/2.png", "images/3.png", "images/4.png"], "human_preference": 1 },
        { "prompt": "c", "image_path": ["images/3.png", "images/4.png", "images/5.png"], "rank": [2, 0, 1] },
        { "caption": "d", "jpg_0": "images/0.png", "jpg_1": "images/5.png", "label_0": 0.5 },
        { "caption": "e", "jpg_0": "images/0.png", "jpg_1": "images/5.png", "label_0": 1, "has_label": false },
    ]);
    dir.write("list.json", list.to_string());
    let mut expected = vec![
        row("a", [0, 1], 0.0),
        row("b", [2, 3], 0.0),
        row("b", [3, 4], 1.0),
        row("c", [3, 4], 0.0),
        row("c", [3, 5], 0.0),
        row("c", [4, 5], 1.0),
        row("d", [0, 5], 0.5),
    ];
    expected.push(("e".into(), [0, 5], None));
    assert_eq!(pairs(&dir, &["list.json"]), expected);
    let table = dir.get("out.parquet");
    assert_eq!(column_text(&table, "image_0_uid")[0], pipe::id::image_uid(&png(0)));
    // `score`, `vote` and `train` take it; what is a pairs table already stays as it is.
    dir.tool("pairs").args(["out.parquet", "-o", "again.parquet", "-q"]).ok();
    assert_eq!(read(&dir.get("again.parquet")), expected);
    assert_eq!(column_text(&dir.get("again.parquet"), "image_1_uid"), column_text(&table, "image_1_uid"));
}

#[test]
fn folders_are_read_by_the_names_in_them() {
    let dir = world();
    for (side, images) in [("w", [0u8, 2]), ("l", [1, 3])] {
        fs::create_dir_all(dir.path(&format!("mine/{side}"))).unwrap();
        for (name, n) in ["cat", "dog"].iter().zip(images) {
            dir.write(&format!("mine/{side}/{name}.png"), png(n));
        }
    }
    says(&dir.tool("pairs").args(["mine", "-o", "out.parquet"]).fails(2), &["w/cat.png", "no caption", "cat.txt"]);
    dir.write("mine/w/cat.txt", "a cat\n");
    dir.write("mine/dog.txt", "a dog");
    assert_eq!(pairs(&dir, &["mine"]), [row("a cat", [0, 1], 1.0), row("a dog", [2, 3], 1.0)]);
    dir.write("mine/l/bird.png", png(5));
    says(&dir.tool("pairs").args(["mine", "-o", "out.parquet"]).fails(2), &["l/bird.png", "no counterpart"]);
    // A folder with a list.
    dir.write("images/metadata.jsonl", r#"{"prompt": "x", "winner": "4.png", "loser": "5.png"}"#);
    assert_eq!(pairs(&dir, &["images"]), [row("x", [4, 5], 1.0)]);
    // Names and paths of one's own.
    fs::create_dir(dir.path("lists")).unwrap();
    dir.write("lists/mine.jsonl", r#"{"query": "x", "good": "4.png", "bad": "5.png"}"#);
    let columns = ["lists/mine.jsonl", "--columns", "caption=query,winner=good,loser=bad", "--root", "images"];
    assert_eq!(pairs(&dir, &columns), [row("x", [4, 5], 1.0)]);
    says(&dir.tool("pairs").args(["lists/mine.jsonl", "-o", "o.parquet"]).fails(2), &["query", "--columns caption="]);
}

#[test]
fn tables_and_archives_hold_the_images_themselves() {
    let dir = world();
    let bytes = |all: [u8; 2]| -> ArrayRef { Arc::new(BinaryArray::from_iter_values(all.map(png))) };
    let as_datasets = |all: [u8; 2]| -> ArrayRef {
        let field = |name: &str, kind| Arc::new(Field::new(name, kind, true));
        let paths = texts(["x.png", "y.png"]);
        Arc::new(StructArray::from(vec![
            (field("bytes", DataType::Binary), bytes(all)),
            (field("path", DataType::Utf8), paths),
        ]))
    };
    let expected = [row("a", [0, 1], 1.0), row("b", [2, 3], 1.0)];
    let prompts = || texts(["a", "b"]);
    dir.put(
        "oip.parquet",
        &table(vec![("prompt", prompts()), ("chosen", as_datasets([0, 2])), ("rejected", as_datasets([1, 3]))]),
    );
    assert_eq!(pairs(&dir, &["oip.parquet"]), expected);
    // A folder as the hub has it.
    fs::create_dir_all(dir.path("hub/data")).unwrap();
    fs::rename(dir.path("oip.parquet"), dir.path("hub/data/train-00000-of-00001.parquet")).unwrap();
    dir.write("hub/README.md", "---\n---\n");
    assert_eq!(pairs(&dir, &["hub"]), expected);

    let mut tar = tar::Builder::new(fs::File::create(dir.path("shard.tar")).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    for (key, caption, images) in [("0", "a", [0, 1]), ("1", "b", [2, 3])] {
        add(&format!("x/{key}.original_prompt.txt"), caption.as_bytes());
        add(&format!("x/{key}.jpg_0.jpg"), &png(images[0]));
        add(&format!("x/{key}.jpg_1.jpg"), &png(images[1]));
        add(&format!("x/{key}.label_0.txt"), b"1.0");
    }
    tar.into_inner().unwrap().flush().unwrap();
    assert_eq!(pairs(&dir, &["shard.tar"]), expected);
    let mut cut = dir.bytes("shard.tar");
    cut.truncate(cut.len() / 2 + 100);
    dir.write("cut.tar", cut);
    says(&dir.tool("pairs").args(["cut.tar", "-o", "out.parquet"]).fails(2), &["cut.tar", "not a whole tar archive"]);
}

/// Nothing is passed over in silence: neither a list beside another, nor a preference in words that are not read.
#[test]
fn what_is_not_taken_is_said() {
    let dir = world();
    fs::create_dir(dir.path("both")).unwrap();
    dir.write("both/a.csv", "prompt,winner,loser\na,images/0.png,images/1.png\n");
    dir.write("both/b.jsonl", r#"{"prompt": "b", "winner": "images/2.png", "loser": "images/3.png"}"#);
    let error = dir.tool("pairs").args(["both", "-o", "x.parquet"]).fails(2);
    says(&error, &["both/a.csv", "both/b.jsonl", "name the files"]);
    assert_eq!(pairs(&dir, &["both/a.csv", "both/b.jsonl", "--root", "."]).len(), 2);
    for side in ["w", "l"] {
        fs::create_dir(dir.path(&format!("both/{side}"))).unwrap();
    }
    says(&dir.tool("pairs").args(["both", "-o", "x.parquet"]).fails(2), &["several kinds"]);
    fs::remove_file(dir.path("both/b.jsonl")).unwrap();
    says(&dir.tool("pairs").args(["both", "-o", "x.parquet"]).fails(2), &["folders of images", "both/a.csv"]);
    // An image that a list names is an input too.
    dir.write("x.csv", "prompt,winner,loser\na,images/0.png,images/1.png\n");
    std::os::unix::fs::symlink("images/1.png", dir.path("y.parquet")).unwrap();
    says(&dir.tool("pairs").args(["x.csv", "-o", "y.parquet"]).fails(2), &["y.parquet is also an input"]);
    assert_eq!(fs::read(dir.path("images/1.png")).unwrap(), png(1));
    dir.write("left.csv", "prompt,image_0,image_1,preference\na,images/0.png,images/1.png,left\n");
    says(&dir.tool("pairs").args(["left.csv", "-o", "x.parquet"]).ok().err, &["1 pair, 1 without a label", "label_0"]);
}

#[test]
fn what_is_wrong_is_named_or_left_out_and_counted() {
    let dir = world();
    dir.write(
        "list.csv",
        "prompt,winner,loser\na,images/0.png,images/1.png\nb,images/9.png,images/1.png\nc,list.csv,images/1.png\n",
    );
    says(&dir.tool("pairs").args(["list.csv", "-o", "out.parquet"]).fails(2), &["list.csv, line 3", "images/9.png"]);
    assert!(!dir.path("out.parquet").exists());
    let run = dir.tool("pairs").args(["list.csv", "-o", "out.parquet", "--skip-bad"]).ok();
    says(&run.err, &["1 pair, without 2 bad samples"]);
    // In folders: a pair, a winner alone, a loser alone and one without a caption.
    for side in ["w", "l"] {
        fs::create_dir_all(dir.path(&format!("sides/{side}"))).unwrap();
        for name in ["good", if side == "w" { "won" } else { "lost" }, "mute"] {
            fs::write(dir.path(&format!("sides/{side}/{name}.png")), png(0)).unwrap();
        }
    }
    for name in ["good", "won", "lost"] {
        dir.write(&format!("sides/{name}.txt"), "a cat");
    }
    let sides = |rest: &[&str]| dir.tool("pairs").args(["sides", "-o", "sides.parquet"]).args(rest);
    says(&sides(&[]).fails(2), &["mute.png has no caption", "mute.txt"]);
    says(&sides(&["--skip-bad"]).ok().err, &["1 pair, without 3 bad samples"]);
    for (file, content, parts) in [
        ("x.json", "[{\"prompt\": \"a\"}]", &["element 0", "no pair of images", "winner"][..]),
        ("y.json", "[{\"prompt\": \"a\"", &["begins like JSON"]),
        (
            "z.json",
            "[{\"prompt\": \"a\", \"winner\": \"https://x/y.png\", \"loser\": \"images/0.png\"}]",
            &["download the image first"],
        ),
        (
            "v.json",
            "[{\"prompt\": \"a\", \"image_path\": [\"images/0.png\", \"images/1.png\"]}]",
            &["human_preference"],
        ),
        (
            "d.json",
            "[{\"prompt\": \"a\", \"winner\": \"/dev/zero\", \"loser\": \"images/0.png\"}]",
            &["/dev/zero is not a file"],
        ),
        (
            "twice.json",
            "[{\"prompt\": \"a\", \"winner\": \"images/0.png\", \"loser\": \"images/1.png\", \"winner\": \"images/2.png\"}]",
            &["\"winner\"", "twice"],
        ),
        (
            "twice.jsonl",
            "{\"prompt\": \"a\", \"winner\": \"images/0.png\", \"winner\": \"images/1.png\", \"loser\": \"images/2.png\"}",
            &["object 0", "\"winner\"", "twice"],
        ),
        (
            "twice.csv",
            "prompt,winner,loser,winner\na,images/0.png,images/1.png,images/2.png\n",
            &["column 3", "'winner'", "as another"],
        ),
        (
            "true.json",
            "[{\"prompt\": true, \"winner\": \"images/0.png\", \"loser\": \"images/1.png\"}]",
            &["element 0", "prompt"],
        ),
        ("w.csv", "a,b\n1,2\n", &["not a list of pairs", "prompt,winner,loser"]),
        ("empty.json", "", &["is empty"]),
    ] {
        dir.write(file, content);
        let line = dir.tool("pairs").args([file, "-o", "out2.parquet"]).fails(2);
        says(&line, &[file]);
        says(&line, parts);
    }
    says(&dir.tool("pairs").args(["images", "-o", "out2.parquet"]).fails(2), &["images holds neither", "--images"]);
    says(&dir.tool("pairs").args(["nothing", "-o", "out2.parquet"]).fails(2), &["nothing", "No such file"]);
    says(&dir.tool("pairs").args(["list.csv", "-o", "list.csv"]).fails(2), &["list.csv"]);
}

#[test]
fn single_images_become_an_images_table() {
    let dir = world();
    (0..6).for_each(|n| drop(dir.write(&format!("images/{n}.txt"), format!("prompt {}\n", n / 2))));
    dir.tool("pairs").args(["--images", "images", "-o", "images.parquet", "-q"]).ok();
    let table = dir.get("images.parquet");
    assert_eq!(column_text(&table, "prompt"), ["prompt 0", "prompt 0", "prompt 1", "prompt 1", "prompt 2", "prompt 2"]);
    assert_eq!(column_text(&table, "model"), vec!["images"; 6]);
    assert_eq!(column(&table, "k").as_primitive::<UInt32Type>().values(), &[0, 1, 0, 1, 0, 1]);
    assert_eq!(column(&table, "image").as_binary::<i32>().value(3), png(3));
    // As `datasets` writes it.
    dir.tool("pairs")
        .args(["--images", "images.parquet", "-o", "hub.parquet", "-q", "--image-column", "datasets"])
        .ok();
    let hub = dir.get("hub.parquet");
    let field = hub.schema().field_with_name("image").unwrap().clone();
    assert!(field.is_nullable() && matches!(field.data_type(), DataType::Struct(_)));
    let features: Value = serde_json::from_str(&hub.schema().metadata()["huggingface"]).unwrap();
    assert_eq!(features["info"]["features"]["image"]["_type"], "Image");
    assert_eq!(column(&hub, "image").as_struct().column(0).as_binary::<i32>().value(3), png(3));
}

#[test]
fn labels_of_vote_become_columns_of_trl() {
    let dir = world();
    let list =
        "prompt,winner,loser\na,images/0.png,images/1.png\nb,images/2.png,images/3.png\nc,images/4.png,images/5.png\n";
    dir.write("list.csv", list);
    dir.tool("pairs").args(["list.csv", "-o", "pairs.parquet", "-q"]).ok();
    let table = dir.get("pairs.parquet");
    let [captions, zero, one] = ["caption", "image_0_uid", "image_1_uid"].map(|name| column_text(&table, name));
    let id = |i: usize| pipe::id::pair_id(&captions[i], &zero[i], &one[i], "");
    let labels = vec![
        ("pair_id", texts([id(0), id(1), id(2)])),
        ("target", floats([Some(0.0), Some(1.0), Some(1.0)])),
        ("weight", floats([Some(1.0), Some(1.0), Some(0.0)])),
    ];
    dir.put("labels.parquet", &util::table(labels));
    let run = ["pairs.parquet", "--labels", "labels.parquet", "-o", "out.parquet"];
    says(&dir.tool("pairs").args(run).ok().err, &["2 pairs, without 1 undecided pair"]);
    assert_eq!(read(&dir.get("out.parquet")), [row("a", [0, 1], 0.0), row("b", [2, 3], 1.0)]);
    dir.tool("pairs").args(run).args(["--layout", "trl"]).ok();
    let trl = dir.get("out.parquet");
    let image = |name: &str, row: usize| column(&trl, name).as_binary::<i32>().value(row).to_vec();
    assert_eq!(column_text(&trl, "prompt"), ["a", "b"]);
    assert_eq!([image("chosen", 0), image("rejected", 0)], [png(1), png(0)]);
    assert_eq!([image("chosen", 1), image("rejected", 1)], [png(2), png(3)]);
    // What TRL reads is read again.
    fs::rename(dir.path("out.parquet"), dir.path("trl.parquet")).unwrap();
    assert_eq!(pairs(&dir, &["trl.parquet"]), [row("a", [1, 0], 1.0), row("b", [2, 3], 1.0)]);
}
