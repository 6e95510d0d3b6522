//! `sample`, through the binary. Bytes are compared between two runs made here and now, numbers with those of
//! `tests/oracle/dpo.py`, and with the parity kit where it lies beside the repository.
#![cfg(feature = "nets")]

#[path = "sample/lora.rs"]
mod lora;
#[path = "sample/noise.rs"]
mod noise;
#[path = "sample/pictures.rs"]
mod pictures;
#[path = "sample/refused.rs"]
mod refused;
#[path = "sample/runs.rs"]
mod runs;
mod util;

use std::{path::Path, time::Instant};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::UInt64Type,
};
use candle_core::{DType, Tensor};
use pipe::id;
use util::{world::*, *};

/// Four steps of the small model: 8 x 8 latents, 16 x 16 pixels.
fn sample(dir: &Dir, prompts: &str, out: &str, rest: &str) -> Tool {
    let rest: Vec<_> = rest.split_whitespace().collect();
    let base = oracle("base").display().to_string();
    let mut args = vec![prompts, "-o", out, "-q"];
    let usual = [("--base", &base[..]), ("--steps", "4")];
    args.extend(usual.iter().filter(|(flag, _)| !rest.contains(flag)).flat_map(|(flag, value)| [*flag, *value]));
    dir.tool("sample").args(rest.iter().chain(&args))
}

const PROMPTS: &str = "a red bicycle\na robot\ntwo cats on a roof\nthe sea at night\nan old tree\n";

fn world() -> Dir {
    let dir = Dir::new();
    dir.write("prompts.txt", PROMPTS);
    dir
}

fn pngs(table: &RecordBatch) -> Vec<Vec<u8>> {
    column(table, "image").as_binary::<i32>().iter().map(|b| b.unwrap().to_vec()).collect()
}

fn seeds(table: &RecordBatch) -> Vec<u64> {
    column(table, "seed").as_primitive::<UInt64Type>().values().to_vec()
}

/// Height, width and pixels.
fn pixels(png: &[u8]) -> (usize, usize, Vec<u8>) {
    let rgb = nets::image::decode(png).unwrap();
    (rgb.height, rgb.width, rgb.data)
}

/// At most one level apart, and rarely.
#[track_caller]
fn same_picture(png: &[u8], expected: &[u8]) {
    let (_, _, ours) = pixels(png);
    assert_eq!(ours.len(), expected.len());
    let far = ours.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(far <= 1, "a pixel is {far} levels off");
}

/// Karras' sigmas and another spacing change the picture, its name and what the PNG says of itself.
#[test]
fn karras_and_spacing_are_recorded() {
    let dir = Dir::new();
    dir.write("one.txt", "a red bicycle\n");
    let drawn = |rest: &str| {
        sample(&dir, "one.txt", "x.parquet", rest).ok();
        let table = dir.get("x.parquet");
        let origin: serde_json::Value = serde_json::from_str(&table.schema().metadata()["origin"]).unwrap();
        (parameters(&pngs(&table)[0]), column_text(&table, "image_uid")[0].clone(), origin["args"].clone())
    };
    let mut uids = std::collections::HashSet::new();
    for (rest, label) in [
        ("--scheduler euler", "Euler"),
        ("--scheduler euler --karras", "Euler Karras"),
        ("--scheduler euler --spacing trailing", "Euler"),
        ("--scheduler euler-a", "Euler a"),
        ("--scheduler euler_a --karras", "Euler a Karras"),
        ("--scheduler dpmpp --karras", "DPM++ 2M Karras"),
        ("--scheduler ddim --spacing linspace", "DDIM"),
    ] {
        let (parameters, uid, args) = drawn(rest);
        assert!(parameters.contains(&format!("Sampler: {label}, ")), "{rest}: {parameters}");
        assert!(uids.insert(uid), "{rest}: another setting gave the same image_uid");
        assert_eq!(args.get("karras").is_some(), rest.contains("karras"), "{rest}");
        assert_eq!(args.get("spacing").is_some(), rest.contains("spacing"), "{rest}");
    }
    says(&sample(&dir, "one.txt", "y.parquet", "--scheduler pndm --karras").fails(2), &["pndm has no Karras sigmas"]);
    says(&sample(&dir, "one.txt", "y.parquet", "--spacing even").exits(2).err, &["--spacing", "leading", "linspace"]);
    // The base's own configuration may ask for Karras' sigmas too.
    copy(&oracle("base"), &dir.path("base"));
    let file = dir.path("base/scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen('{', "{\"use_karras_sigmas\": true,", 1)).unwrap();
    sample(&dir, "one.txt", "k.parquet", &format!("--base {} --scheduler euler", dir.path("base").display())).ok();
    sample(&dir, "one.txt", "l.parquet", "--scheduler euler --karras").ok();
    let (k, l) = (pngs(&dir.get("k.parquet")), pngs(&dir.get("l.parquet")));
    assert!(pixels(&k[0]) == pixels(&l[0]) && parameters(&k[0]).contains("Euler Karras"));
}

/// The text chunk `parameters` of a PNG.
fn parameters(png: &[u8]) -> String {
    let reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter().map(|t| (t.keyword.clone(), t.text.clone()));
    let utf8 = info.utf8_text.iter().map(|t| (t.keyword.clone(), t.get_text().unwrap()));
    latin.chain(utf8).find(|(key, _)| key == "parameters").unwrap().1
}

#[test]
fn each_png_says_how_it_was_drawn() {
    let dir = Dir::new();
    dir.write("prompts.txt", "a red bicycle\nein Bär, 熊\n");
    sample(&dir, "prompts.txt", "a.parquet", "--scheduler dpmpp --guidance 3.5 --negative --no_text --name red,blue")
        .ok();
    let a = dir.get("a.parquet");
    let unet = id::file_hash(&oracle("base/unet/diffusion_pytorch_model.safetensors")).unwrap();
    let of = |prompt: &str, row: usize| {
        format!(
            "{prompt}\nNegative prompt: --no_text\nSteps: 4, Sampler: DPM++ 2M, CFG scale: 3.5, Seed: {}, Size: 16x16, \
             Model hash: {}, Model: \"red,blue\", RNG: balanced-dpo, Version: balanced-dpo {}",
            seeds(&a)[row],
            &unet[..10],
            env!("CARGO_PKG_VERSION")
        )
    };
    assert_eq!(parameters(&pngs(&a)[0]), of("a red bicycle", 0));
    assert_eq!(parameters(&pngs(&a)[1]), of("ein Bär, 熊", 1));
    let origin: serde_json::Value = serde_json::from_str(&a.schema().metadata()["origin"]).unwrap();
    assert_eq!(origin["args"]["scheduler"], "dpmpp");
    assert_eq!((&origin["args"]["negative"], &origin["args"]["guidance"]), (&"--no_text".into(), &3.5.into()));
    for part in ["unet", "vae", "text_encoder", "scheduler"] {
        assert_eq!(origin["models"][part].as_str().map(str::len), Some(64), "{part}");
    }
    // Whatever changes the picture changes its name.
    let uids = |rest: &str| {
        sample(&dir, "prompts.txt", "b.parquet", rest).ok();
        column_text(&dir.get("b.parquet"), "image_uid")
    };
    let plain = uids("");
    assert_eq!(plain, uids("-n 1 --name other"));
    for rest in ["--scheduler euler", "--guidance 3", "--negative grey", "--steps 5", "--height 12", "--seed 1"] {
        assert_ne!(plain, uids(rest), "{rest}");
    }
    assert!(!parameters(&pngs(&dir.get("b.parquet"))[0]).contains("Negative"));
}

#[test]
fn the_table_says_what_was_drawn() {
    let dir = world();
    sample(&dir, "prompts.txt", "out.parquet", "-n 2").ok();
    let table = dir.get("out.parquet");
    let names: Vec<_> = table.schema().fields().iter().map(|f| f.name().clone()).collect();
    let keys = ["prompt_id", "prompt", "set", "category", "challenge"];
    assert_eq!(names, [&keys[..], &["image_uid", "k", "seed", "model", "image"]].concat());
    let prompts: Vec<_> = PROMPTS.lines().flat_map(|p| [p, p]).collect();
    assert_eq!(column_text(&table, "prompt"), prompts);
    assert_eq!(column_text(&table, "prompt_id")[2], pipe::id::prompt_id("a robot"));
    assert_eq!((&column_text(&table, "set")[0][..], &column_text(&table, "model")[0][..]), ("prompts", "base"));
    let uids: std::collections::HashSet<_> = column_text(&table, "image_uid").into_iter().collect();
    assert_eq!(uids.len(), 10);
    let all = pngs(&table);
    assert!(all.iter().all(|png| pixels(png).0 == 16 && pixels(png).1 == 16));
    assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), 10, "each image is another");
    let origin: serde_json::Value = serde_json::from_str(&table.schema().metadata()["origin"]).unwrap();
    assert_eq!(
        (&origin["tool"], &origin["args"]["steps"], &origin["args"]["n"]),
        (&"sample".into(), &4.into(), &2.into())
    );
    for absent in ["threads", "batch", "shard"] {
        assert!(origin["args"].get(absent).is_none());
    }
    // Another size; a name.
    sample(&dir, "prompts.txt", "wide.parquet", "--height 12 --width 20 --name mine").ok();
    let wide = dir.get("wide.parquet");
    assert_eq!((pixels(&pngs(&wide)[0]).0, pixels(&pngs(&wide)[0]).1), (12, 20));
    assert_eq!(column_text(&wide, "model")[0], "mine");
}

#[test]
fn a_summary_as_json_and_in_the_singular() {
    let dir = Dir::new();
    dir.write("one.txt", "a red bicycle\n");
    let args = ["one.txt", "--base", oracle("base").to_str().unwrap(), "--steps", "2", "--name", "m", "-o", "out"]
        .map(String::from);
    says(&dir.tool("sample").args(&args).ok().err, &["1 image of 1 prompt by m"]);
    let json = dir.tool("sample").args(&args).args(["--json"]).ok().json();
    assert_eq!(json, serde_json::json!({"images": 1, "prompts": 1, "model": "m", "copies": 0}));
}

#[test]
fn images_as_datasets_writes_them_are_the_same_images() {
    let dir = world();
    sample(&dir, "prompts.txt", "a.parquet", "").ok();
    sample(&dir, "prompts.txt", "b.parquet", "--image-column datasets").ok();
    let (a, b) = (dir.get("a.parquet"), dir.get("b.parquet"));
    let features: serde_json::Value = serde_json::from_str(&b.schema().metadata()["huggingface"]).unwrap();
    assert_eq!(features["info"]["features"]["image"]["_type"], "Image");
    let bytes = column(&b, "image").as_struct().column_by_name("bytes").unwrap().as_binary::<i32>().clone();
    assert!(bytes.iter().map(|b| b.unwrap().to_vec()).eq(pngs(&a)));
    assert_eq!(column_text(&a, "image_uid"), column_text(&b, "image_uid"));
}
