//! Metrics that judge and do not vote, and the scores of other programs.

use std::process::Command;

use arrow::datatypes::{DataType, Field, Metadata, Schema};

use super::*;

#[test]
fn a_judge_scores_and_does_not_vote_unless_it_is_named() {
    let dir = world(12);
    dir.put("images.parquet", &as_images(&pairs(12)));
    let model = format!("clip-l={}", scorers().join("clip").display());
    let metrics = ["--metrics", "hps,colourfulness,clip-l", "--model", &model];
    score(&dir, "pairs.parquet -o s.parquet").args(metrics).ok();
    score(&dir, "images.parquet -o i.parquet").args(metrics).ok();
    let (scores, scored) = (dir.get("s.parquet"), dir.get("i.parquet"));
    let colour = [column_f32(&scores, "colourfulness_0"), column_f32(&scores, "colourfulness_1")].concat();
    assert!(colour.iter().all(|m| (0.0..200.0).contains(m)) && colour.iter().any(|&m| m > 10.0), "{colour:?}");
    for metric in ["colourfulness", "clip-l"] {
        assert_eq!(column_f32(&scored, metric)[3], column_f32(&scores, &format!("{metric}_1"))[1]);
    }
    let voters = |scores: &str, more: &[&str]| -> Vec<String> {
        dir.tool("vote").args([scores, "-o", "labels.parquet"]).args(more).ok();
        let schema = dir.get("labels.parquet").schema();
        schema.fields().iter().filter_map(|f| Some(f.name().strip_prefix("vote_")?.to_owned())).collect()
    };
    assert_eq!(voters("s.parquet", &[]), ["hps"]);
    assert_eq!(voters("s.parquet", &["--metrics", "colourfulness,hps"]), ["colourfulness", "hps"]);
    assert_eq!(voters("s.parquet", &["--metrics", "hps,clip-l"]), ["hps", "clip-l"]);
    // In a table of its own, and through a pipe.
    score(&dir, "pairs.parquet -o hps.parquet --metrics hps").ok();
    let judge = score(&dir, "pairs.parquet -o - -q --metrics colourfulness").ok();
    dir.tool("vote").args(["hps.parquet", "-", "-o", "labels.parquet"]).stdin(judge.out.clone()).ok();
    assert!(dir.get("labels.parquet").column_by_name("vote_colourfulness").is_none());
    dir.put("judge.parquet", &judge.table());
    assert_eq!(voters("hps.parquet", &["judge.parquet"]), ["hps"]);
    let tool = dir.tool("score").args(["pairs.parquet", "-o", "c.parquet", "--metrics", "colourfulness"]);
    tool.ok(); // without any model
    let error = score(&dir, "pairs.parquet -o s.parquet --metrics colourfulness --model colourfulness=x").fails(2);
    says(&error, &["'colourfulness' needs no model"]);
}

/// Scores of another program.
type Judged = Vec<Option<f32>>;

/// Pairs and images, their scores by `score`, and those of another program: of both sides of each pair, and of the images.
fn judged() -> (Dir, [Judged; 2], Judged) {
    let dir = world(12);
    let drawn = as_images(&pairs(12));
    dir.put("policy.parquet", &drawn);
    score(&dir, "pairs.parquet -o scores.parquet --metrics hps").ok();
    score(&dir, "policy.parquet -o policy-scored.parquet --metrics hps").ok();
    let judged = |text: &str, bytes: &[u8]| (bytes.len() % 10 != 2).then_some((text.len() * bytes.len() % 100) as f32);
    let values = |table: &RecordBatch, text: &str, bytes: &str| -> Vec<Option<f32>> {
        let texts = column_text(table, text);
        (0..table.num_rows()).map(|i| judged(&texts[i], &image(table, bytes, i))).collect()
    };
    let pairs = dir.get("pairs.parquet");
    let sides = ["jpg_0", "jpg_1"].map(|side| values(&pairs, "caption", side));
    let images = values(&drawn, "prompt", "image");
    assert!(images.contains(&None));
    (dir, sides, images)
}

/// FORMATS.md's recipe for the scores of another program.
#[test]
#[ignore = "needs Python with pyarrow"]
fn scores_added_by_the_recipe_are_read() {
    let (dir, sides, images) = judged();
    let judge = "judge = lambda text, image: len(text) * len(image) % 100 if len(image) % 10 != 2 else None\n";
    let formats = include_str!("../../common/FORMATS.md");
    let recipe = formats.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let run = Command::new(python).args(["-c", &(judge.to_owned() + recipe)]).current_dir(dir.path("")).output();
    let run = run.unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    are_read(&dir, &sides, &images);
}

#[test]
fn scores_made_elsewhere_are_read() {
    let (dir, sides, images) = judged();
    let add = |from: &str, columns: &[(&str, &Vec<Option<f32>>)], to: &str| {
        let table = dir.get(from);
        let (mut fields, mut all) = (table.schema().fields().to_vec(), table.columns().to_vec());
        for (name, values) in columns {
            let role = Metadata::default().with("role", "judge");
            fields.push(Arc::new(Field::new(*name, DataType::Float32, true).with_metadata(role)));
            all.push(floats(values.iter().copied()));
        }
        let schema = Schema::new(fields).with_metadata(table.schema().metadata().clone());
        dir.put(to, &RecordBatch::try_new(Arc::new(schema), all).unwrap());
    };
    add("scores.parquet", &[("hpsv3_0", &sides[0]), ("hpsv3_1", &sides[1])], "scores-hpsv3.parquet");
    add("policy-scored.parquet", &[("hpsv3", &images)], "policy-hpsv3.parquet");
    are_read(&dir, &sides, &images);
}

/// `vote` and `winrate` read the added columns.
fn are_read(dir: &Dir, sides: &[Judged; 2], images: &[Option<f32>]) {
    let vote = |metrics: &[&str]| -> RecordBatch {
        dir.tool("vote").args(["scores-hpsv3.parquet", "-o", "labels.parquet", "-q"]).args(metrics).ok();
        dir.get("labels.parquet")
    };
    assert!(vote(&[]).column_by_name("vote_hpsv3").is_none());
    let named = vote(&["--metrics", "hps,hpsv3"]);
    let s = |i: usize| sides[0][i].zip(sides[1][i]).map_or(0, |(m_0, m_1)| i8::from(m_0 > m_1) - i8::from(m_0 < m_1));
    assert_eq!(column_i8(&named, "vote_hpsv3"), (0..12).map(s).collect::<Vec<_>>());
    assert_eq!(column_i8(&named, "vote_hps"), column_i8(&vote(&[]), "vote_hps"));
    assert_eq!(column_f32_or_null(&dir.get("policy-hpsv3.parquet"), "hpsv3"), images);
    // Against itself every score is a tie; a null score is left out, and the column does not name its model.
    dir.put("base-hpsv3.parquet", &dir.get("policy-hpsv3.parquet"));
    let args = ["policy-hpsv3.parquet", "base-hpsv3.parquet", "--best-of", "2", "--json"];
    let run = dir.tool("winrate").args(args).ok();
    let json = run.json();
    assert_eq!(json["metrics"], serde_json::json!(["hps", "hpsv3"]));
    let nulls = images.iter().filter(|score| score.is_none()).count();
    assert_eq!(json["tables"][0]["null_scores"]["hpsv3"], nulls);
    assert_eq!(json["comparisons"][0]["all"]["metrics"]["hpsv3"]["ties"], 12);
    says(&run.err, &["does not name the scorer of hpsv3"]);
}
