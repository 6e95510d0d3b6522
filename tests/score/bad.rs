//! Odd data, bad rows and wrong command lines, and what is said of them.

use super::*;

#[test]
fn the_report_names_what_is_odd_in_the_data() {
    let dir = Dir::new();
    let some = pairs(24);
    let black = nets::image::png(&nets::image::Rgb { width: 9, height: 7, data: vec![0; 9 * 7 * 3] }, None).unwrap();
    // A black image in row 0, one image on both sides of rows 1 and 2; of the human labels a third are ties, a third missing.
    let image_0: Vec<_> = (0..24).map(|i| if i == 0 { black.clone() } else { image(&some, "jpg_0", i) }).collect();
    let image_1: Vec<_> =
        (0..24).map(|i| image(&some, if [1, 2].contains(&i) { "jpg_0" } else { "jpg_1" }, i)).collect();
    let column = |all: &[Vec<u8>]| images(&all.iter().map(|b| Some(&b[..])).collect::<Vec<_>>());
    let labels = floats((0..24).map(|i| [Some(1.0), Some(0.5), None][i % 3]));
    let labels = with(&with(&with(&some, "jpg_0", column(&image_0)), "jpg_1", column(&image_1)), "label_0", labels);
    dir.put("pairs.parquet", &labels);
    let run = score(&dir, "pairs.parquet -o s.parquet --json --metrics aesthetic,colourfulness").ok();
    let summary = run.json();
    for (key, count) in [
        ("rows", 24),
        ("black_images", 1),
        ("identical_pairs", 2),
        ("label_ties", 8),
        ("label_missing", 8),
        ("undecodable", 0),
    ] {
        assert_eq!(summary[key], count, "{key}");
    }
    assert_eq!(summary["collapsed"], serde_json::json!([]));
    assert_eq!(summary["metrics"]["aesthetic"]["known_mean"], serde_json::json!([5.0, 6.5]));
    let said = score(&dir, "pairs.parquet -o s.parquet --metrics aesthetic,colourfulness").ok().err;
    says(
        &said,
        &["1 image all black; 2 pairs of one image with itself, 8 human ties, 8 rows without", "usual mean", "5..6.5"],
    );
    // Where `has_label` is false, a label is none.
    let has = |i: usize| [Some(true), Some(false), Some(false), None][i % 4];
    let mut columns: Vec<_> = labels
        .schema()
        .fields()
        .iter()
        .map(|f| (f.name().clone(), labels.column_by_name(f.name()).unwrap().clone()))
        .collect();
    let all: arrow::array::BooleanArray = (0..24).map(has).collect();
    columns.push(("has_label".to_owned(), Arc::new(all)));
    dir.put("has.parquet", &table(columns.iter().map(|(name, c)| (name.as_str(), c.clone())).collect()));
    let summary = score(&dir, "has.parquet -o h.parquet --json --metrics colourfulness").ok().json();
    let expected: Vec<_> =
        (0..24).map(|i| [Some(1.0), Some(0.5), None][i % 3].filter(|_| has(i) != Some(false))).collect();
    assert_eq!(column_f32_or_null(&dir.get("h.parquet"), "label_0"), expected);
    assert_eq!(summary["label_missing"], expected.iter().filter(|l| l.is_none()).count());
    assert_eq!(summary["label_ties"], expected.iter().filter(|l| **l == Some(0.5)).count());
    // Grey images, all of them, and no labels.
    let grey = |i: usize| {
        let data = vec![i as u8; 3 * 3 * 3];
        nets::image::png(&nets::image::Rgb { width: 3, height: 3, data }, None).unwrap()
    };
    let greys: Vec<_> = (1..25).map(grey).collect();
    let table = with(&without(&some, "label_0"), "jpg_0", column(&greys));
    dir.put("grey.parquet", &with(&table, "jpg_1", column(&greys)));
    let run = score(&dir, "grey.parquet -o g.parquet --json --metrics colourfulness").ok();
    assert_eq!(
        (&run.json()["collapsed"], &run.json()["label_missing"]),
        (&serde_json::json!(["colourfulness"]), &24.into())
    );
    says(&run.err, &["warning: colourfulness gives nearly the same score to every image"]);
}

#[test]
fn bad_rows_stop_it_or_are_counted() {
    let good = pairs(6);
    let at = |name: &str, row: usize| image(&good, name, row);
    let truncated = at("jpg_0", 2);
    let truncated = truncated[..truncated.len() / 2].to_vec();
    // A PNG that claims 100,000 x 100,000 pixels.
    let mut bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\x01\x86\xa0\0\x01\x86\xa0\x08\x02\0\0\0".to_vec();
    bomb.extend([0x2f, 0x93, 0x4b, 0x3f]);
    let zero = [Some(at("jpg_0", 0)), Some(at("jpg_0", 1)), Some(truncated), None, Some(at("jpg_0", 4)), Some(bomb)];
    let zero: Vec<_> = zero.iter().map(|b| b.as_deref()).collect();
    let captions = StringArray::from(vec![Some("a"), Some("b"), Some("c"), Some("d"), None, Some("f")]);
    let cases = [
        (2, "jpg_0", images(&[zero[0], zero[1], zero[2], zero[0], zero[0], zero[0]]), &["truncated"][..]),
        (3, "jpg_0", images(&[zero[0], zero[1], zero[0], None, zero[0], zero[0]]), &["null"]),
        (4, "caption", Arc::new(captions.clone()), &["caption is null"]),
        (5, "jpg_0", images(&[zero[0], zero[1], zero[0], zero[0], zero[0], zero[5]]), &["PNG"]),
    ];
    for (row, name, column, why) in cases {
        let dir = Dir::new();
        dir.put("pairs.parquet", &with(&good, name, column));
        let error = score(&dir, "pairs.parquet -o s.parquet").fails(2);
        says(&error, &["pairs.parquet", &format!("row {row} (from 0)"), "--skip-bad"]);
        says(&error, why);
        assert!(!dir.path("s.parquet").exists());
    }
    let dir = Dir::new();
    dir.put("pairs.parquet", &with(&with(&good, "jpg_0", images(&zero)), "caption", Arc::new(captions)));
    let summary = score(&dir, "pairs.parquet -o s.parquet --skip-bad --json").ok().json();
    assert_eq!(
        (&summary["rows"], &summary["undecodable"], &summary["null_captions"]),
        (&6.into(), &3.into(), &1.into())
    );
    let scores = dir.get("s.parquet");
    for metric in METRICS {
        let missing = |side: &str| -> Vec<bool> {
            column_f32_or_null(&scores, &format!("{metric}_{side}")).iter().map(Option::is_none).collect()
        };
        assert_eq!(missing("0"), [false, false, true, true, true, true], "{metric}");
        assert_eq!(missing("1"), [false, false, false, false, true, false], "{metric}");
    }
    assert_eq!(column_text(&scores, "caption")[4], "");
    dir.tool("vote").args(["s.parquet", "-o", "labels.parquet"]).ok();
}

#[test]
fn a_wrong_command_line_says_what_to_do() {
    let dir = world(3);
    dir.put("images.parquet", &as_images(&pairs(3)));
    dir.put("no_jpg.parquet", &without(&pairs(3), "jpg_1"));
    dir.put("no_prompt.parquet", &without(&as_images(&pairs(3)), "prompt"));
    dir.put("neither.parquet", &without(&as_images(&pairs(3)), "image"));
    for (args, parts) in [
        (
            "pairs.parquet -o s.parquet --metrics hps,beauty",
            &["no metric 'beauty'", "hps, clip, pickscore, aesthetic, clip-l, colourfulness"][..],
        ),
        ("pairs.parquet -o s.parquet --metrics hps,hps", &["'hps' twice"]),
        ("pairs.parquet -o s.parquet --batch 0", &["--batch is 0"]),
        ("pairs.parquet -o s.parquet --model clip", &["METRIC=TOWER"]),
        ("pairs.parquet -o s.parquet --model clip=absent", &["absent", "does not exist"]),
        ("pairs.parquet -o s.parquet --model clip=x --metrics hps", &["--metrics does not name 'clip'"]),
        ("no_jpg.parquet -o s.parquet", &["no_jpg.parquet: column 'jpg_1' is missing (found: caption"]),
        ("no_prompt.parquet -o s.parquet", &["column 'prompt' is missing"]),
        ("neither.parquet -o s.parquet", &["neither a pairs table", "nor an images table"]),
        ("pairs.parquet", &["-o PATH"]),
    ] {
        says(&score(&dir, args).fails(2), parts);
    }
    let tool = dir.tool("score").args(["pairs.parquet", "-o", "s.parquet", "--models", "absent"]);
    says(&tool.fails(2), &["--models absent is not a folder"]);
    says(
        &dir.tool("score").args(["pairs.parquet", "-o", "s.parquet"]).fails(2),
        &["'hps' has no model", "--models DIR"],
    );
    std::fs::create_dir(dir.path("empty")).unwrap();
    let tool = dir.tool("score").args(["pairs.parquet", "-o", "s.parquet", "--models", "empty"]);
    says(&tool.fails(2), &["empty/hps does not exist", "--model hps=PATH"]);
    assert!(!dir.list().iter().any(|name| name.starts_with("s.parquet")));
}
