//! `score`, through the binary: numbers and models. Numbers are compared with those of `tests/oracle/score.py`, and with
//! the parity kit where it lies beside the repository.
#![cfg(feature = "nets")]

mod util;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use arrow::array::ArrayRef;
use candle_core::{DType, Tensor};
use serde_json::Value;
use util::{world::*, *};

const METRICS: [&str; 4] = ["hps", "clip", "pickscore", "aesthetic"];
const COLUMNS: [&str; 8] =
    ["hps_0", "hps_1", "clip_0", "clip_1", "pickscore_0", "pickscore_1", "aesthetic_0", "aesthetic_1"];

fn scorers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/mini/scorers")
}

/// `score` with the mini world's models.
fn score(dir: &Dir, args: &str) -> Tool {
    dir.tool("score").args(args.split_whitespace()).args(["--models", scorers().to_str().unwrap()])
}

/// A folder with the first `n` pairs.
fn world(n: usize) -> Dir {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(n));
    dir
}

#[test]
fn scores_are_those_of_transformers() {
    let dir = world(24);
    score(&dir, "pairs.parquet -o s.parquet").ok();
    let scores = dir.get("s.parquet");
    let names: Vec<_> = scores.schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names, [&["pair_id", "caption", "image_0_uid", "image_1_uid", "label_0"], &COLUMNS[..]].concat());
    let expected: Value = serde_json::from_str(include_str!("fixtures/score.json")).unwrap();
    for name in COLUMNS {
        let (metric, side) = name.split_at(name.len() - 2);
        let tolerance = if metric == "aesthetic" { 1e-4 } else { 2e-5 };
        for (row, ours) in column_f32(&scores, name).into_iter().enumerate() {
            let theirs = expected[metric][row][usize::from(side == "_1")].as_f64().unwrap();
            assert!((f64::from(ours) - theirs).abs() < tolerance, "{name}, row {row}: {ours}, expected {theirs}");
        }
    }
    let pairs = pairs(24);
    assert_eq!(column_text(&scores, "image_1_uid"), column_text(&pairs, "image_1_uid"));
    assert_eq!(column_f32(&scores, "label_0").len(), 24);
    assert_eq!(column_text(&scores, "pair_id"), column_text(&labels(&pairs, some), "pair_id"));
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn scores_are_those_of_the_parity_kit() {
    let kit = parity("");
    let rows: Value = serde_json::from_slice(&std::fs::read(kit.join("expected/scores.json")).unwrap()).unwrap();
    let rows = rows.as_array().unwrap();
    let text = |key: &str| texts(rows.iter().map(|r| r[key].as_str().unwrap()));
    let files = |key: &str| -> ArrayRef {
        let read = |r: &Value| std::fs::read(kit.join("images").join(r[key].as_str().unwrap())).unwrap();
        let bytes: Vec<_> = rows.iter().map(read).collect();
        images(&bytes.iter().map(|b| Some(&b[..])).collect::<Vec<_>>())
    };
    let dir = Dir::new();
    let columns = [("caption", "prompt"), ("image_0_uid", "image_0"), ("image_1_uid", "image_1")];
    let mut columns: Vec<_> = columns.iter().map(|(ours, theirs)| (*ours, text(theirs))).collect();
    columns.extend([("jpg_0", files("image_0")), ("jpg_1", files("image_1"))]);
    dir.put("pairs.parquet", &table(columns));
    let model = |m: &str, path: &str| format!("--model={m}={}", kit.join("models").join(path).display());
    let head = kit.join("models/aesthetic/sac+logos+ava1-l14-linearMSE.pth");
    let models = [
        model("hps", "hpsv2/HPS_v2.1_compressed.pt"),
        model("clip", "clip_h_open_clip"),
        model("pickscore", "pickscore"),
        format!("{},{}", model("aesthetic", "clip_l"), head.display()),
    ];
    for (resize, suffix) in [("antialias", ""), ("legacy", "_noaa")] {
        let args = ["pairs.parquet", "-o", "s.parquet", "--hps-version", "2.1", "--hps-resize", resize];
        dir.tool("score").args(args).args(&models).ok();
        let scores = dir.get("s.parquet");
        for metric in METRICS {
            let ours = [0, 1].map(|side| column_f32(&scores, &format!("{metric}_{side}")));
            let letterboxed = ["hps", "clip"].contains(&metric);
            let key = if letterboxed { format!("{metric}{suffix}") } else { metric.to_owned() };
            for (i, row) in rows.iter().enumerate() {
                for side in [0, 1] {
                    let gap = f64::from(ours[side][i]) - row[&key][side].as_f64().unwrap();
                    assert!(gap.abs() < if metric == "aesthetic" { 1e-4 } else { 2e-5 }, "{key}, row {i}: {gap}");
                }
                if suffix.is_empty() {
                    assert_eq!(ours[0][i] > ours[1][i], row["prefer_0"][metric].as_bool().unwrap(), "{key}, row {i}");
                }
            }
        }
    }
}

/// The judges of the kit, and how far a score may be from the peer's.
const JUDGES: [(&str, f64); 4] =
    [("imagereward", 2e-5), ("cyclereward", 2e-5), ("mps", 2e-3), ("aesthetic-v2.5", 2e-5)];

#[test]
#[ignore = "needs ../shared/parity/given"]
fn judges_score_as_their_peers_on_the_parity_kit() {
    let dir = Dir::new();
    let expected: Value = serde_json::from_slice(&std::fs::read(parity("expected/judges.json")).unwrap()).unwrap();
    let metrics = JUDGES.map(|(name, _)| name).join(",");
    let models = parity("models/judges");
    for table in ["pickapic_like", "judges_like"] {
        let pairs = parity(&format!("{table}.parquet"));
        let args = [pairs.to_str().unwrap(), "--metrics", &metrics, "--models", models.to_str().unwrap()];
        dir.tool("score").args(args).args(["-o", "s.parquet"]).ok();
        let scores = dir.get("s.parquet");
        let rows = expected[table].as_array().unwrap();
        assert_eq!(scores.num_rows(), rows.len());
        for (metric, tolerance) in JUDGES {
            for side in [0, 1] {
                let ours = column_f32(&scores, &format!("{metric}_{side}"));
                for (i, (ours, row)) in ours.iter().zip(rows).enumerate() {
                    let gap = f64::from(*ours) - row[metric]["score"][side].as_f64().unwrap();
                    assert!(gap.abs() < tolerance, "{metric}_{side} of {table}, row {i}: {gap:e}");
                }
            }
        }
    }
}

#[test]
fn an_open_clip_file_scores_as_the_same_weights_in_transformers_layout() {
    let dir = world(8);
    open_clip_folder(&dir, "hps", "open");
    let hps = |model: &str, more: &[&str]| {
        let model = format!("hps={model}");
        let args = ["pairs.parquet", "-o", "s.parquet", "--metrics", "hps", "--model", &model];
        dir.tool("score").args(args).args(more)
    };
    says(&hps("open", &[]).fails(2), &["does not say which HPS it is", "version 2.0 or 2.1", "--hps-version"]);
    hps("open", &["--hps-version", "2.0"]).ok();
    let theirs = dir.get("s.parquet");
    assert!(theirs.schema().metadata()["origin"].contains(r#""hps_version":"2.0""#));
    hps("open/open_clip_model.safetensors", &["--hps-version=2.0"]).ok();
    assert_eq!(dir.get("s.parquet"), theirs);
    let named = dir.path("open/HPS_v2.1_mini.safetensors");
    std::fs::rename(dir.path("open/open_clip_model.safetensors"), &named).unwrap();
    says(
        &hps("open/HPS_v2.1_mini.safetensors", &["--hps-version=2.0"]).fails(2),
        &["version 2.0 was chosen", "says 2.1", "--hps-version"],
    );
    // A name is no proof.
    says(&hps("open/HPS_v2.1_mini.safetensors", &[]).fails(2), &["does not say which HPS it is", "choose version 2.1"]);
    hps("open/HPS_v2.1_mini.safetensors", &["--hps-version=2.1"]).ok();
    hps(scorers().join("hps").to_str().unwrap(), &[]).ok();
    let ours = dir.get("s.parquet");
    for name in ["hps_0", "hps_1"] {
        assert_eq!(column_f32(&ours, name), column_f32(&theirs, name));
    }
}

#[test]
fn a_sharded_model_scores_as_the_whole() {
    let dir = world(4);
    let all = tensors(&scorers().join("clip/model.safetensors"));
    std::fs::create_dir(dir.path("sharded")).unwrap();
    let mut map = serde_json::Map::new();
    for i in 0..3 {
        let file = format!("model-0000{}-of-00003.safetensors", i + 1);
        let part: HashMap<_, _> = all.clone().into_iter().skip(i).step_by(3).collect();
        candle_core::safetensors::save(&part, dir.path("sharded").join(&file)).unwrap();
        map.extend(part.into_keys().map(|name| (name, file.clone().into())));
    }
    dir.write("sharded/model.safetensors.index.json", serde_json::json!({ "weight_map": map }).to_string());
    for file in ["config.json", "preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer.json"] {
        std::fs::copy(scorers().join("clip").join(file), dir.path("sharded").join(file)).unwrap();
    }
    let run = |model: &str, out: &str| {
        let model = format!("clip={model}");
        dir.tool("score").args(["pairs.parquet", "-o", out, "--metrics", "clip", "--model", &model])
    };
    run(scorers().join("clip").to_str().unwrap(), "whole.parquet").ok();
    let whole = dir.get("whole.parquet");
    for model in ["sharded", "sharded/model.safetensors.index.json"] {
        run(model, "s.parquet").ok();
        assert_eq!(column_f32(&dir.get("s.parquet"), "clip_0"), column_f32(&whole, "clip_0"));
    }
    std::fs::remove_file(dir.path("sharded/model-00002-of-00003.safetensors")).unwrap();
    says(&run("sharded", "t.parquet").fails(2), &["model-00002-of-00003.safetensors, which is missing"]);
}

/// The CLIPModel `name` of the mini world as open_clip would have saved it.
fn open_clip_folder(dir: &Dir, name: &str, to: &str) {
    let from = scorers().join(name);
    let hf = tensors(&from.join("model.safetensors"));
    let mut all = Tensors::new();
    let mut put = |name: &str, tensor: Tensor| drop(all.insert(name.to_owned(), tensor));
    for (name, tensor) in &hf {
        let (model, prefix) = if name.starts_with("vision") { ("vision_model", "visual.") } else { ("text_model", "") };
        let Some(rest) = name.strip_prefix(&format!("{model}.encoder.layers.")) else { continue };
        let (layer, part) = rest.split_once('.').unwrap();
        let block = format!("{prefix}transformer.resblocks.{layer}");
        for (ours, theirs) in [
            ("layer_norm1.", "ln_1."),
            ("layer_norm2.", "ln_2."),
            ("self_attn.out_proj.", "attn.out_proj."),
            ("mlp.fc1.", "mlp.c_fc."),
            ("mlp.fc2.", "mlp.c_proj."),
        ] {
            if let Some(kind) = part.strip_prefix(ours) {
                put(&format!("{block}.{theirs}{kind}"), tensor.clone());
            }
        }
        if let Some(kind) = part.strip_prefix("self_attn.q_proj.") {
            let third = |p: &str| &hf[&format!("{model}.encoder.layers.{layer}.self_attn.{p}_proj.{kind}")];
            let whole = Tensor::cat(&[third("q"), third("k"), third("v")], 0).unwrap();
            put(&format!("{block}.attn.in_proj_{kind}"), whole);
        }
    }
    for (theirs, ours) in [
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("ln_final.weight", "text_model.final_layer_norm.weight"),
        ("ln_final.bias", "text_model.final_layer_norm.bias"),
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        ("visual.ln_pre.weight", "vision_model.pre_layrnorm.weight"),
        ("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
        ("visual.ln_post.weight", "vision_model.post_layernorm.weight"),
        ("visual.ln_post.bias", "vision_model.post_layernorm.bias"),
        ("logit_scale", "logit_scale"),
    ] {
        put(theirs, hf[ours].clone());
    }
    for (theirs, ours) in [("text_projection", "text_projection.weight"), ("visual.proj", "visual_projection.weight")] {
        put(theirs, hf[ours].t().unwrap().contiguous().unwrap());
    }
    std::fs::create_dir(dir.path(to)).unwrap();
    let all: HashMap<_, _> = all.into_iter().collect();
    candle_core::safetensors::save(&all, dir.path(to).join("open_clip_model.safetensors")).unwrap();
    for file in ["vocab.json", "merges.txt", "tokenizer.json"] {
        std::fs::copy(from.join(file), dir.path(to).join(file)).unwrap();
    }
    let config = r#"{"model_cfg": {"embed_dim": 64, "quick_gelu": true,
        "vision_cfg": {"image_size": 64, "layers": 3, "width": 96, "head_width": 24, "patch_size": 8},
        "text_cfg": {"context_length": 24, "vocab_size": 8192, "width": 64, "heads": 4, "layers": 2}}}"#;
    dir.write(&format!("{to}/open_clip_config.json"), config);
}

#[test]
fn a_damaged_model_is_named() {
    let dir = world(3);
    let copy = |name: &str, to: &str| {
        std::fs::create_dir(dir.path(to)).unwrap();
        for entry in std::fs::read_dir(scorers().join(name)).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, dir.path(to).join(from.file_name().unwrap())).unwrap();
        }
    };
    let run = |metric: &str, model: &str| {
        dir.tool("score")
            .args(["pairs.parquet", "-o", "s.parquet", "--metrics", metric])
            .args(["--model", &format!("{metric}={model}")])
    };
    copy("clip", "clip");
    let weights = tensors(&dir.path("clip/model.safetensors"));
    let save = |weights: Tensors| {
        let all: HashMap<_, _> = weights.into_iter().collect();
        candle_core::safetensors::save(&all, dir.path("clip/model.safetensors")).unwrap();
    };
    let projection = "visual_projection.weight";
    let mut other = weights.clone();
    other.insert(projection.into(), weights[projection].narrow(0, 0, 32).unwrap().contiguous().unwrap());
    save(other);
    says(
        &run("clip", "clip").fails(2),
        &["metric 'clip'", "'visual_projection.weight' has shape [32, ", "expected [64, "],
    );
    let mut other = weights.clone();
    other.remove("text_model.final_layer_norm.weight");
    save(other);
    says(&run("clip", "clip").fails(2), &["'text_model.final_layer_norm.weight' is missing"]);
    let mut other = weights.clone();
    let nan = (weights[projection].to_dtype(DType::F32).unwrap() * f64::NAN).unwrap();
    other.insert(projection.into(), nan);
    save(other);
    says(&run("clip", "clip").fails(2), &["clip/model.safetensors", "'visual_projection.weight'", "NaN"]);
    dir.write("clip/model.safetensors", b"\x10\0\0\0\0\0\0\0{");
    says(&run("clip", "clip").fails(2), &["clip/model.safetensors is not a whole safetensors file"]);

    let pickle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pickle/bad_os.system_2.pt");
    std::fs::remove_file(dir.path("clip/model.safetensors")).unwrap();
    std::fs::copy(&pickle, dir.path("clip/pytorch_model.bin")).unwrap();
    says(&run("clip", "clip").fails(2), &["pytorch_model.bin", "system"]);
    copy("aesthetic", "aesthetic");
    std::fs::copy(&pickle, dir.path("aesthetic/head.pth")).unwrap();
    says(&run("aesthetic", "aesthetic").fails(2), &["head.pth", "system"]);
    std::fs::remove_file(dir.path("aesthetic/head.pth")).unwrap();
    says(&run("aesthetic", "aesthetic").fails(2), &["holds no head", "--model aesthetic=TOWER,HEAD"]);
    let head = scorers().join("clip/model.safetensors");
    let error = run("aesthetic", &format!("aesthetic,{}", head.display())).fails(2);
    says(&error, &["not a known head"]);
    std::fs::remove_file(dir.path("aesthetic/config.json")).unwrap();
    std::fs::copy(scorers().join("aesthetic/head.pth"), dir.path("aesthetic/head.pth")).unwrap();
    says(&run("aesthetic", "aesthetic").fails(2), &["config.json"]);
    assert!(!dir.list().iter().any(|name| name.starts_with("s.parquet")));
}
