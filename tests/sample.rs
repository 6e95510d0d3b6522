//! `sample`, through the binary. Bytes are compared between two runs made here and now, numbers with those of
//! `tests/oracle/dpo.py`, and with the parity kit where it lies beside the repository.
#![cfg(feature = "nets")]

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

#[test]
fn ddim_gives_the_images_of_diffusers() {
    let dir = Dir::new();
    let expected = tensors(&oracle("expected.safetensors"));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(oracle("expected.json")).unwrap()).unwrap();
    let prompts: Vec<_> = json["prompts"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    dir.write("prompts.json", serde_json::to_vec(&prompts).unwrap());
    write_tensors(&dir.path("noise"), &[("latents".into(), expected["sample.noise"].clone())].into());
    let rest = "--steps 10 --guidance 7.5 --latents noise --dump-latents final";
    sample(&dir, "prompts.json", "out.parquet", rest).ok();
    let far = max_abs(&tensors(&dir.path("final"))["latents"], &expected["sample.latents"]);
    assert!(far < 1e-3, "{far}");
    let images = expected["sample.image_u8"].chunk(2, 0).unwrap();
    for (png, image) in pngs(&dir.get("out.parquet")).iter().zip(images) {
        same_picture(png, &image.flatten_all().unwrap().to_vec1::<u8>().unwrap());
    }
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn every_sampler_gives_the_images_of_the_parity_kit() {
    let kit = parity("");
    let settings = std::fs::read_to_string(kit.join("expected/sample.json")).unwrap();
    let settings: serde_json::Value = serde_json::from_str(&settings.replace("Infinity", "0")).unwrap();
    let dir = Dir::new();
    for (case, settings) in settings.as_object().unwrap() {
        let (model, scheduler) = case.rsplit_once('_').unwrap();
        let expected = tensors(&kit.join(format!("expected/sample/{case}.safetensors")));
        dir.write("prompts.json", serde_json::to_vec(&[&settings["prompt"]]).unwrap());
        write_tensors(&dir.path("noise"), &[("latents".into(), expected["noise"].clone())].into());
        let rest = format!(
            "--base {} --scheduler {} --steps {} --guidance {} --latents noise --dump-latents final",
            kit.join("models").join(model).display(),
            scheduler.trim_end_matches("2m"),
            settings["steps"],
            settings["guidance"]
        );
        sample(&dir, "prompts.json", "out.parquet", &rest).ok();
        let far = max_abs(&tensors(&dir.path("final"))["latents"], &expected["latents"]);
        println!("{case}: latents off by {far:.1e}");
        assert!(far < 1e-3, "{case}: {far}");
        let image = expected["image_u8"].squeeze(0).unwrap().permute((1, 2, 0)).unwrap();
        same_picture(&pngs(&dir.get("out.parquet"))[0], &image.flatten_all().unwrap().to_vec1::<u8>().unwrap());
    }
}

/// Euler ancestral, Karras' sigmas and other spacings on SD 1.5, 2.1 and SDXL.
#[test]
#[ignore = "needs ../shared/parity/given"]
fn further_samplers_give_the_latents_of_the_parity_kit() {
    let kit = parity("");
    // Python writes infinities, which JSON does not have.
    let text = std::fs::read_to_string(kit.join("expected/flow.json")).unwrap().replace("-Infinity", "null");
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let dir = Dir::new();
    let noise = kit.join("expected/flow/samplers_noise.safetensors").display().to_string();
    for (case, settings) in all["samplers"].as_object().unwrap() {
        let (model, name) = case.split_once('_').unwrap();
        let expected =
            &tensors(&kit.join("expected").join(settings["file"].as_str().unwrap()))[&format!("{name}.latents")];
        dir.write("prompts.json", serde_json::to_vec(&[&settings["prompt"]]).unwrap());
        let scheduler = if name.starts_with("euler_a") { "euler-a" } else { name.split('_').next().unwrap() };
        let rest = format!(
            "--base {} --scheduler {scheduler} --steps {} --guidance {} --spacing {} {} --latents {noise} --dump-latents final",
            kit.join("models").join(model).display(),
            settings["steps"],
            settings["guidance"],
            settings["config"]["timestep_spacing"].as_str().unwrap(),
            if name.contains("karras") { "--karras" } else { "" },
        );
        sample(&dir, "prompts.json", "out.parquet", &rest).ok();
        let far = max_abs(&tensors(&dir.path("final"))["latents"], expected);
        println!("{case}: latents off by {far:.1e}");
        assert!(far < 2e-4, "{case}: {far}");
    }
}

/// The noise that Euler ancestral adds follows from the image alone, or comes from a file.
#[test]
fn added_noise_is_the_image_s_own() {
    let dir = world();
    let flags = "-n 2 --scheduler euler-a --dump-latents a";
    sample(&dir, "prompts.txt", "a.parquet", flags).ok();
    for rest in ["--batch 3", "--batch 1 --threads 1", "--threads 2"] {
        sample(&dir, "prompts.txt", "b.parquet", &format!("-n 2 --scheduler euler-a {rest}")).ok();
        assert!(dir.bytes("a.parquet") == dir.bytes("b.parquet"), "{rest}");
    }
    for shard in ["1/2", "0/2"] {
        sample(&dir, "prompts.txt", "parts", &format!("-n 2 --scheduler euler-a --shard {shard}")).ok();
    }
    assert_eq!(dir.get("parts").columns(), dir.get("a.parquet").columns());
    dir.write("one.txt", "an old tree\n");
    sample(&dir, "one.txt", "c.parquet", "-n 2 --scheduler euler-a").ok();
    assert_eq!(pngs(&dir.get("c.parquet")), pngs(&dir.get("a.parquet"))[8..]);
    // From a file: other noise in the steps leads elsewhere, and each image has its own.
    let latents = Tensor::ones((2, 4, 8, 8), DType::F32, &candle_core::Device::Cpu).unwrap();
    let last = |level: f64| {
        let steps = Tensor::stack(&[&(&latents * level).unwrap(); 4], 0).unwrap();
        let second = (steps.narrow(1, 1, 1).unwrap() * 2.0).unwrap();
        let steps = Tensor::cat(&[&steps.narrow(1, 0, 1).unwrap(), &second], 1).unwrap();
        write_tensors(&dir.path("noise"), &[("latents".into(), latents.clone()), ("step_noise".into(), steps)].into());
        sample(&dir, "one.txt", "d.parquet", "-n 2 --scheduler euler-a --latents noise --dump-latents d --batch 1")
            .ok();
        tensors(&dir.path("d"))["latents"].clone()
    };
    let (one, two) = (last(0.1), last(0.2));
    let image = |x: &Tensor, i| x.narrow(0, i, 1).unwrap();
    assert!(max_abs(&image(&one, 1), &image(&two, 0)) < 1e-5);
    assert!(max_abs(&image(&one, 0), &image(&one, 1)) > 0.01);
    let error = sample(&dir, "one.txt", "e.parquet", "-n 2 --scheduler euler-a --latents noise --steps 5").fails(2);
    says(&error, &["--latents", "4 steps", "takes 5"]);
    sample(&dir, "one.txt", "e.parquet", "-n 2 --scheduler euler --latents noise --steps 5").ok();
    let flat = Tensor::zeros((4, 2, 4, 8), DType::F32, &candle_core::Device::Cpu).unwrap();
    write_tensors(&dir.path("noise"), &[("latents".into(), latents), ("step_noise".into(), flat)].into());
    let error = sample(&dir, "one.txt", "x.parquet", "-n 2 --scheduler euler-a --latents noise").fails(2);
    says(&error, &["'step_noise' has shape [4, 2, 4, 8]"]);
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

/// `tests/oracle/sample.py`: SD 2.1 and SDXL in their own layouts, all samplers, negative prompts, other sizes told.
#[test]
fn sd21_and_sdxl_give_the_images_of_diffusers_pipelines() {
    let dir = Dir::new();
    let expected = tensors(&fixture("sample/expected.safetensors"));
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("sample/cases.json")).unwrap()).unwrap();
    dir.write("prompts.json", serde_json::to_vec(&json["prompts"]).unwrap());
    for case in json["cases"].as_array().unwrap() {
        let (model, i) = (case["model"].as_str().unwrap(), &case["case"]);
        let rest = format!(
            "--base {} --scheduler {} --steps {} --guidance {} --latents {} --dump-latents final",
            fixture("sample").join(model).display(),
            case["scheduler"].as_str().unwrap(),
            case["steps"],
            case["guidance"],
            fixture("sample/noise.safetensors").display()
        );
        let mut tool = sample(&dir, "prompts.json", "out.parquet", &rest);
        if let Some(negative) = case["negative"].as_str() {
            tool = tool.args(["--negative", negative]);
        }
        if let Some(ids) = case["time_ids"].as_array() {
            tool = tool.args(["--time-ids", &ids.iter().map(|i| i.to_string()).collect::<Vec<_>>().join(",")]);
        }
        tool.ok();
        let far = max_abs(&tensors(&dir.path("final"))["latents"], &expected[&format!("{model}.{i}.latents")]);
        assert!(far < 2e-4, "{case}: {far}");
        let Some(images) = expected.get(&format!("{model}.{i}.image_u8")) else { continue };
        for (png, image) in pngs(&dir.get("out.parquet")).iter().zip(images.chunk(2, 0).unwrap()) {
            same_picture(png, &image.flatten_all().unwrap().to_vec1::<u8>().unwrap());
        }
    }
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
fn threads_batches_and_the_machine_s_mood_change_nothing() {
    let dir = world();
    sample(&dir, "prompts.txt", "a.parquet", "-n 3 --batch 8").ok();
    for rest in ["--batch 3", "--batch 1", "--batch 100", "--threads 1", "--threads 2"] {
        sample(&dir, "prompts.txt", "b.parquet", &format!("-n 3 {rest}")).ok();
        assert!(dir.bytes("a.parquet") == dir.bytes("b.parquet"), "{rest}");
    }
    let sdxl = format!("-n 3 --base {} --scheduler dpmpp --negative grey", fixture("sample/sdxl").display());
    sample(&dir, "prompts.txt", "xl.parquet", &sdxl).ok();
    for rest in ["--batch 2", "--threads 1"] {
        sample(&dir, "prompts.txt", "b.parquet", &format!("{sdxl} {rest}")).ok();
        assert!(dir.bytes("xl.parquet") == dir.bytes("b.parquet"), "SDXL {rest}");
    }
    let piped = sample(&dir, "-", "-", "-n 3").stdin(PROMPTS).ok();
    assert_eq!(pngs(&piped.table()), pngs(&dir.get("a.parquet")));
    sample(&dir, "prompts.txt", "b.parquet", "-n 3 --seed 1").ok();
    assert_ne!(pngs(&dir.get("a.parquet")), pngs(&dir.get("b.parquet")));
}

#[test]
fn shards_put_together_are_the_whole() {
    let dir = world();
    sample(&dir, "prompts.txt", "whole.parquet", "-n 2").ok();
    for shard in ["2/3", "0/3", "1/3"] {
        sample(&dir, "prompts.txt", "parts", &format!("-n 2 --shard {shard}")).ok();
    }
    assert_eq!(dir.get("parts").columns(), dir.get("whole.parquet").columns());
    let names: Vec<_> = tree(&dir.path("parts")).into_keys().map(|p| p.display().to_string()).collect();
    assert_eq!(names, [0, 1, 2].map(|i| format!("part-{i:05}-of-00003.parquet")));
}

#[test]
fn an_image_follows_from_seed_prompt_and_k() {
    let dir = world();
    sample(&dir, "prompts.txt", "a.parquet", "-n 2").ok();
    dir.write("other.txt", "the sea at night\nsomething else\na robot\n");
    sample(&dir, "other.txt", "b.parquet", "-n 3").ok();
    let (a, b) = (dir.get("a.parquet"), dir.get("b.parquet"));
    for (there, here) in [(6, 0), (7, 1), (2, 6), (3, 7)] {
        assert_eq!((seeds(&a)[there], &pngs(&a)[there]), (seeds(&b)[here], &pngs(&b)[here]));
        assert_eq!(column_text(&a, "image_uid")[there], column_text(&b, "image_uid")[here]);
    }
    // Another model begins with the same noise and ends elsewhere.
    sample(&dir, "prompts.txt", "c.parquet", &format!("-n 2 --unet {}", oracle("policy").display())).ok();
    let c = dir.get("c.parquet");
    assert_eq!(seeds(&a), seeds(&c));
    assert!(pngs(&a).iter().zip(pngs(&c)).all(|(a, c)| *a != c));
    assert_ne!(column_text(&a, "image_uid")[0], column_text(&c, "image_uid")[0]);
    assert_eq!(column_text(&c, "model")[0], "policy");
}

/// The prompt of a row is its text and its set; the picture follows from the text.
#[test]
fn the_same_text_in_two_sets_is_drawn_once() {
    let dir = world();
    dir.write("more.txt", "a robot\nsomething else\nthe sea at night\n");
    let draw = |out: &str, rest: &str| {
        let base = oracle("base").display().to_string();
        let args = ["prompts.txt", "more.txt", "-o", out, "--base", &base, "--steps", "4", "-n", "2"];
        dir.tool("sample").args(args.iter().copied().chain(rest.split_whitespace())).ok().err
    };
    says(&draw("both.parquet", ""), &["16 images of 8 prompts", "4 images are copies"]);
    let both = dir.get("both.parquet");
    for (name, rows) in [("prompts.txt", 0..10), ("more.txt", 10..16)] {
        sample(&dir, name, "alone.parquet", "-n 2").ok();
        assert_eq!(dir.get("alone.parquet").columns(), both.slice(rows.start, rows.len()).columns());
    }
    let uids = column_text(&both, "image_uid");
    assert_eq!((&uids[2..4], &uids[6..8]), (&uids[10..12], &uids[14..16]));
    // However the rows are cut, and where a run continues.
    for rest in ["--batch 1", "--batch 3", "--batch 16", "--dump-latents final"] {
        draw("again.parquet", rest);
        assert!(dir.bytes("again.parquet") == dir.bytes("both.parquet"), "{rest}");
    }
    // With given noise each row is another picture, and has another name.
    draw("given.parquet", "--latents final --dump-latents last");
    let uids: std::collections::HashSet<_> = column_text(&dir.get("given.parquet"), "image_uid").into_iter().collect();
    assert_eq!(uids.len(), 16);
}

#[test]
fn a_killed_run_continues_to_the_same_bytes() {
    let dir = world();
    let rest = "-n 12 --batch 2 --steps 20";
    sample(&dir, "prompts.txt", "whole.parquet", rest).ok();
    let mut child = spawn(sample(&dir, "prompts.txt", "out.parquet", rest));
    let part = |i: usize| dir.path(&format!("out.parquet.partial/{i:06}.crc32c")); // written last
    wait_for("three parts", || part(2).exists());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!dir.path("out.parquet").exists());
    let stamp = |i| std::fs::metadata(part(i)).unwrap().modified().unwrap();
    let before = [stamp(0), stamp(1), stamp(2)];
    for other in ["--seed 1", "--steps 19", "--guidance 3", "-n 11"] {
        let rest: Vec<_> = rest.split(' ').collect();
        let flag = other.split(' ').next().unwrap();
        let kept: Vec<_> = rest.chunks(2).filter(|c| c[0] != flag).flatten().copied().collect();
        let error = sample(&dir, "prompts.txt", "out.parquet", &format!("{} {other}", kept.join(" "))).fails(2);
        says(&error, &["out.parquet.partial holds the unfinished parts of other work"]);
    }
    dir.write("other.txt", "a red bicycle\n");
    says(&sample(&dir, "other.txt", "out.parquet", rest).fails(2), &["other work"]);
    // SIGTERM in the second run; what is finished stays as it is.
    let mut child = spawn(sample(&dir, "prompts.txt", "out.parquet", rest));
    wait_for("a further part", || part(20).exists());
    std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(before, [stamp(0), stamp(1), stamp(2)]);
    // The third one draws the rest, but cannot put the table into place.
    let mut child = spawn(sample(&dir, "prompts.txt", "out.parquet", rest));
    wait_for("a further part", || part(21).exists());
    std::fs::create_dir(dir.path("out.parquet")).unwrap();
    dir.write("out.parquet/x", "in the way");
    assert_eq!(child.wait().unwrap().code(), Some(2));
    std::fs::remove_dir_all(dir.path("out.parquet")).unwrap();
    // So all images are there, and the fourth draws none: that shows in its time. (Other work may spoil a measurement.)
    copy(&dir.path("out.parquet.partial"), &dir.path("kept"));
    let took = |out: &str| {
        let began = Instant::now();
        sample(&dir, "prompts.txt", out, rest).ok();
        began.elapsed()
    };
    let quick = |_| {
        copy(&dir.path("kept"), &dir.path("out.parquet.partial"));
        took("out.parquet") < took("again.parquet") / 2
    };
    assert!((0..4).any(quick), "finished images are drawn again");
    assert!(dir.bytes("out.parquet") == dir.bytes("whole.parquet"));
    assert!(!dir.path("out.parquet.partial").exists());
}

/// A signal while the parts are joined is not lost: the join stops, and the parts stay for the next run.
#[test]
fn a_signal_during_the_join_keeps_the_parts() {
    let dir = world();
    let rest = "-n 20 --batch 1 --steps 1";
    sample(&dir, "prompts.txt", "whole.parquet", rest).ok();
    let stopped = |_| {
        let mut child = spawn(sample(&dir, "prompts.txt", "out.parquet", rest));
        wait_for("the join", || {
            dir.path("out.parquet.partial/whole.parquet.partial").exists() || dir.path("out.parquet").exists()
        });
        std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
        child.wait().unwrap().code() == Some(143) && dir.path("out.parquet.partial/000099.parquet").exists()
    };
    // The join may be over before the signal arrives.
    let again = |i| std::fs::remove_file(dir.path("out.parquet")).is_ok() || i == 0;
    assert!((0..6).filter(|&i| again(i)).any(stopped), "the signal was ignored");
    sample(&dir, "prompts.txt", "out.parquet", rest).ok();
    assert!(dir.bytes("out.parquet") == dir.bytes("whole.parquet"));
}

#[test]
fn latents_in_and_out() {
    let dir = world();
    sample(&dir, "prompts.txt", "a.parquet", "-n 2 --dump-latents a --batch 3").ok();
    let last = tensors(&dir.path("a"))["latents"].clone();
    assert_eq!((last.dims(), last.dtype()), (&[10, 4, 8, 8][..], DType::F32));
    // Another size: rows in the order prompt, then k.
    let mut next = noise(3);
    let mut numbers = |n: usize| (0..n).map(|_| 3.0 * (next() - 0.5)).collect::<Vec<f32>>();
    let given = Tensor::from_vec(numbers(10 * 4 * 6 * 10), (10, 4, 6, 10), &candle_core::Device::Cpu).unwrap();
    write_tensors(&dir.path("noise"), &[("latents".into(), given.clone())].into());
    sample(&dir, "prompts.txt", "b.parquet", "-n 2 --latents noise --dump-latents b").ok();
    let b = dir.get("b.parquet");
    assert_eq!((pixels(&pngs(&b)[0]).0, pixels(&pngs(&b)[0]).1), (12, 20));
    assert_eq!(tensors(&dir.path("b"))["latents"].dims(), [10, 4, 6, 10]);
    let ninth = given.narrow(0, 8, 1).unwrap(); // of the second part
    write_tensors(&dir.path("noise"), &[("latents".into(), ninth)].into());
    dir.write("one.txt", "an old tree\n");
    sample(&dir, "one.txt", "c.parquet", "--latents noise").ok();
    assert_eq!(pngs(&dir.get("c.parquet"))[0], pngs(&b)[8]);
    // What does not fit.
    std::fs::create_dir(dir.path("folder")).unwrap();
    for (rest, parts) in [
        ("--latents noise", &["--latents holds 1 rows", "5 images"][..]),
        ("--latents noise --height 16", &["--latents decides the size"]),
        ("--latents noise --shard 0/2", &["do not go with --shard"]),
        ("--latents prompts.txt", &["prompts.txt is a text"]),
        ("--latents absent", &["absent"]),
        ("--dump-latents prompts.txt/x", &["prompts.txt is not a folder"]),
        ("--dump-latents folder", &["cannot write folder: it is a folder"]),
    ] {
        says(&sample(&dir, "prompts.txt", "x.parquet", rest).fails(2), parts);
    }
    let flat = Tensor::zeros((5, 4), DType::F32, &candle_core::Device::Cpu).unwrap();
    write_tensors(&dir.path("noise"), &[("latents".into(), flat.clone())].into());
    says(&sample(&dir, "prompts.txt", "x.parquet", "--latents noise").fails(2), &["'latents' has shape [5, 4]"]);
    write_tensors(&dir.path("noise"), &[("other".into(), flat)].into());
    says(&sample(&dir, "prompts.txt", "x.parquet", "--latents noise").fails(2), &["tensor 'latents' is missing"]);
    let three = Tensor::zeros((5, 3, 8, 8), DType::F32, &candle_core::Device::Cpu).unwrap();
    write_tensors(&dir.path("noise"), &[("latents".into(), three)].into());
    says(&sample(&dir, "prompts.txt", "x.parquet", "--latents noise").fails(2), &["3 channels, the denoiser takes 4"]);
    assert!(!dir.path("x.parquet").exists() && !dir.path("x.parquet.partial").exists());
}

/// Guidance 1 is the conditional answer alone; by the formula of guidance g it is also what g -> 1 leads to.
#[test]
fn guidance_1_is_no_guidance() {
    let dir = world();
    let last = |name: &str, guidance: &str| -> Tensor {
        let rest = format!("--guidance {guidance} --dump-latents {name}");
        sample(&dir, "prompts.txt", "x.parquet", &rest).ok();
        tensors(&dir.path(name))["latents"].clone()
    };
    let (one, nearly, strong) = (last("a", "1"), last("b", "1.00001"), last("c", "7.5"));
    assert!(max_abs(&one, &nearly) < 1e-2, "{}", max_abs(&one, &nearly));
    assert!(max_abs(&one, &strong) > 0.1);
}

#[test]
fn bad_input_is_one_sentence_and_nothing_is_written() {
    let dir = world();
    dir.write("empty.txt", "");
    dir.write("blank.txt", "\n\n");
    dir.put("other.parquet", &table(vec![("text", texts(["a"]))]));
    dir.write("plain", "a file");
    let before = dir.list();
    for (prompts, rest, parts) in [
        ("empty.txt", "", &["empty.txt is empty"][..]),
        ("blank.txt", "", &["blank.txt has no prompts"]),
        ("absent.txt", "", &["absent.txt"]),
        ("other.parquet", "", &["other.parquet: column 'prompt' is missing"]),
        ("prompts.txt", "--steps 0", &["0 sampling steps"]),
        ("prompts.txt", "--steps 1001", &["1001 sampling steps do not fit 1000"]),
        ("prompts.txt", "--height 15", &["--height 15 is not a multiple of the VAE's 2"]),
        ("prompts.txt", "--base absent", &["absent"]),
        ("prompts.txt", "--unet absent", &["absent does not exist"]),
        ("prompts.txt", "--unet plain", &["plain"]),
        ("prompts.txt", "--guidance 1 --negative grey", &["--negative", "--guidance above 1, not 1"]),
        ("prompts.txt", "--time-ids 8,8,0,0,8,8", &["--time-ids is for SDXL"]),
        (
            "prompts.txt",
            "--scheduler dpmpp --steps 1000",
            &["scheduler_config.json", "1000 sampling steps and the end"],
        ),
        ("prompts.txt", "--dtype bf16", &["f32"]),
    ] {
        says(&sample(&dir, prompts, "out.parquet", rest).fails(2), parts);
        assert_eq!(dir.list(), before, "{prompts} {rest}");
    }
    for (rest, flag) in [("-n 0", "--images-per-prompt"), ("--batch 0", "--batch"), ("--guidance nan", "--guidance")] {
        says(&sample(&dir, "prompts.txt", "out.parquet", rest).exits(2).err, &[flag]);
        assert_eq!(dir.list(), before, "{rest}");
    }
    says(&sample(&dir, "prompts.txt", "plain/out", "").fails(2), &["plain/out"]);
    let error = sample(&dir, "prompts.txt", "out.parquet", &format!("--unet {}", mini().display())).fails(2);
    says(&error, &["64", "8", "text encoder"]);
    assert_eq!(dir.list(), before);
    // A caption of 10,000 characters.
    dir.write("long.txt", "a very red bicycle ".repeat(600));
    sample(&dir, "long.txt", "long.parquet", "").ok();
}

#[test]
fn a_reader_that_leaves_early_is_no_trouble() {
    use std::io::Read;
    let dir = world();
    let mut tool = sample(&dir, "prompts.txt", "-", "-n 20 --batch 2");
    let mut child =
        tool.command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut some = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
    assert!(Path::new(&dir.path("prompts.txt")).exists());
}

#[test]
fn noise_that_is_no_number_is_refused() {
    let dir = world();
    for (place, value) in [(0, f32::NAN), (7, f32::INFINITY), (255, f32::NEG_INFINITY)] {
        let mut noise = vec![0.5f32; 5 * 4 * 64];
        noise[place] = value;
        let noise = Tensor::from_vec(noise, (5, 4, 8, 8), &candle_core::Device::Cpu).unwrap();
        write_tensors(&dir.path("noise"), &[("latents".into(), noise)].into());
        let error = sample(&dir, "prompts.txt", "out", "--latents noise").fails(2);
        says(&error, &["noise", "'latents'", &format!("number {place}")]);
    }
    assert_eq!(dir.list(), ["noise", "prompts.txt"]);
}

/// What came out of a training that diverged, or was damaged since, draws nothing.
#[test]
fn damaged_weights_draw_nothing() {
    let dir = world();
    copy(&oracle("policy"), &dir.path("policy"));
    let file = "policy/unet/diffusion_pytorch_model.safetensors";
    let whole = tensors(&dir.path(file));
    let mut bad = whole.clone();
    bad.insert("conv_out.bias".into(), Tensor::full(f32::NAN, 4, &candle_core::Device::Cpu).unwrap());
    write_tensors(&dir.path(file), &bad);
    says(&sample(&dir, "prompts.txt", "out", "--unet policy").fails(2), &[file, "'conv_out.bias'", "NaN"]);
    write_tensors(&dir.path(file), &whole);
    dir.tool("refresh-ref").args(["--policy", "policy", "--reference", "policy", "-o", "made"]).ok();
    let file = "made/unet/diffusion_pytorch_model.safetensors";
    let mut bytes = dir.bytes(file);
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    dir.write(file, bytes);
    says(&sample(&dir, "prompts.txt", "out", "--unet made").fails(2), &[file, "is damaged", "checksum"]);
    assert_eq!(dir.list(), ["made", "policy", "prompts.txt"]);
}

/// A named pipe in the place of a file would be waited for without end.
#[test]
fn a_model_lies_in_files() {
    let dir = world();
    for (name, file) in
        [("a", "scheduler/scheduler_config.json"), ("b", "text_encoder/config.json"), ("c", "vae/config.json")]
    {
        copy(&oracle("base"), &dir.path(name));
        let path = dir.path(&format!("{name}/{file}"));
        let _ = std::fs::remove_file(&path);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = sample(&dir, "prompts.txt", "out", &format!("--base {name}")).fails(2);
        says(&error, &[&format!("{name}/{file}"), "a named pipe"]);
    }
}

#[test]
fn outputs_in_the_place_of_inputs_are_refused() {
    let dir = world();
    let before = dir.bytes("prompts.txt");
    for rest in ["--dump-latents prompts.txt", "--dump-latents ./out", "--latents out"] {
        dir.write("out", "x");
        says(&sample(&dir, "prompts.txt", "out", rest).fails(2), &["name another"]);
    }
    assert!(dir.bytes("prompts.txt") == before && dir.bytes("out") == b"x");
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

/// A picture can take minutes; a signal does not wait for it.
#[test]
fn a_signal_does_not_wait_for_a_picture() {
    let dir = world();
    let child = spawn(sample(&dir, "prompts.txt", "out", "--steps 900 -n 100 --batch 500"));
    wait_for("its folder", || dir.path("out.partial/plan.json").exists());
    std::thread::sleep(std::time::Duration::from_millis(300));
    let (mut child, told) = (child, Instant::now());
    let kill = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(told.elapsed().as_secs() < 10, "{:?}", told.elapsed()); // two seconds, on a machine that is not busy
}

#[test]
fn its_own_noise_can_be_kept_and_given_back() {
    let dir = world();
    sample(&dir, "prompts.txt", "a.parquet", "-n 2 --dump-noise noise --dump-latents a").ok();
    let noise = &tensors(&dir.path("noise"))["latents"];
    assert_eq!(noise.dims(), [10, 4, 8, 8]);
    sample(&dir, "prompts.txt", "b.parquet", "-n 2 --latents noise --dump-latents b").ok();
    assert_eq!(max_abs(&tensors(&dir.path("a"))["latents"], &tensors(&dir.path("b"))["latents"]), 0.0);
    let error = sample(&dir, "prompts.txt", "parts", "--dump-noise noise --shard 0/2").fails(2);
    says(&error, &["--dump-noise", "--shard"]);
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

#[test]
fn an_unknown_way_of_a_gpu_is_refused() {
    let dir = Dir::new();
    dir.write("p.txt", "a fox\n");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sample"));
    command.arg(dir.path("p.txt")).arg("--base").arg(oracle("base")).arg("-o").arg(dir.path("x"));
    let output = command.args(["--device", "cuda"]).env("BDPO_GPU", "fast").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    says(&String::from_utf8(output.stderr).unwrap(), &["BDPO_GPU", "fast", "`composed`"]);
}
