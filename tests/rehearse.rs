//! `make rehearse`: whole experiments in the published layouts, with random weights and small networks.
#![cfg(feature = "nets")]

mod util;

use std::{collections::BTreeSet, path::Path, process::Command};

use nets::single::{self, Family};
use nets::{denoiser, image, pickle, text, vae, weights};
use util::{world::*, *};

const STEPS: [&str; 18] = [
    "all", "score scores.parquet", "vote labels/human.parquet", "vote labels/majority.parquet", "encode latents",
    "train DiffusionDPO", "train BalancedDPO", "prompts prompts.parquet", "sample images/base.parquet",
    "sample images/DiffusionDPO.parquet", "sample images/BalancedDPO.parquet", "score scored/base.parquet",
    "score scored/DiffusionDPO.parquet", "score scored/BalancedDPO.parquet", "winrate", "winrate winrate.json",
    "report report.html", "report sheet.png",
];

/// `make` on a rehearsal with small networks: exit code, standard output, standard error.
fn rehearsal(dir: &Dir, args: &[&str]) -> (Option<i32>, String, String) {
    let bin = Path::new(env!("CARGO_BIN_EXE_rehearse")).parent().unwrap();
    let here = [format!("RUNS={}", dir.path("runs").display()), format!("BIN={}", bin.display()), "SIZE=tiny".into()];
    let output = make(args).args(here).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn every_experiment_of_the_paper_runs_and_says_what_its_steps_took() {
    for (x, encoders) in [("sd15", 1), ("sd21", 1), ("sdxl", 2)] {
        let dir = Dir::new();
        let rehearse = format!("X={x}");
        let (code, said, complained) = rehearsal(&dir, &["rehearse", &rehearse]);
        assert_eq!(code, Some(0), "{x}: {said}{complained}");
        let table = said.rsplit_once("in full: time  ").unwrap().1;
        let rows = table.lines().skip(1).take_while(|line| !line.is_empty());
        let steps: BTreeSet<&str> = rows.map(|line| line.split("  ").next().unwrap()).collect();
        assert_eq!(steps, BTreeSet::from(STEPS), "{x}");
        // Nothing is a number that is not finite, and the images are drawn: noise, but no plain colour.
        let here = format!("runs/rehearsal/{x}");
        let images = read_parquet(&dir.path(&format!("{here}/images/BalancedDPO.parquet")));
        assert_eq!(images.num_rows(), 9);
        let pixels = image::decode(&world::image(&images, "image", 0)).unwrap();
        assert_eq!((pixels.width, pixels.height), (64, 64));
        assert!(pixels.data.iter().collect::<BTreeSet<_>>().len() > 50, "{x}: a plain picture");
        for metric in ["hps", "clip", "pickscore", "aesthetic"] {
            let scored = read_parquet(&dir.path(&format!("{here}/scored/base.parquet")));
            assert!(column_f32(&scored, metric).iter().all(|score| score.is_finite()), "{x} {metric}");
        }
        let log = log(&dir.path(&format!("{here}/BalancedDPO")));
        assert!(log.len() == 2 && log.iter().all(|step| step["loss"].as_f64().is_some_and(f64::is_finite)), "{log:?}");
        let text_encoders = (1..=2).filter(|n| {
            let name = if *n == 1 { "text_encoder".into() } else { format!("text_encoder_{n}") };
            dir.path(&format!("{here}/data/{x}/{name}/model.safetensors")).is_file()
        });
        assert_eq!(text_encoders.count(), encoders);

        // A second call runs no program; a budget that is too small is an error that names the step.
        let measured = dir.bytes(&format!("{here}/measured.jsonl"));
        let (code, again, _) = rehearsal(&dir, &["rehearse", &rehearse]);
        assert_eq!((code, again.rsplit_once("in full: time  ").unwrap().1), (Some(0), table));
        let (code, over, _) = rehearsal(&dir, &["rehearse", &rehearse, "BUDGET=train=0.001,sample=20"]);
        assert_eq!(code, Some(2));
        says(&over, &["more memory than its budget: train DiffusionDPO, train BalancedDPO\n"]);
        assert_eq!(dir.bytes(&format!("{here}/measured.jsonl")), measured);
        rehearsal(&dir, &["clean-rehearse", &rehearse]);
        assert!(!dir.path(&here).exists());
    }
    let (code, _, complained) = rehearsal(&Dir::new(), &["rehearse", "X=mini"]);
    assert_eq!(code, Some(2));
    says(&complained, &["X=sd15, sd21 or sdxl"]);
}

#[test]
fn models_are_in_the_published_layouts_and_follow_the_seed() {
    let dir = Dir::new();
    let models = |folder: &str, seed: &str| {
        dir.tool("rehearse").args(["models", folder, "--base", "sd15", "--size", "tiny", "--seed", seed])
    };
    let said = models("a", "0").ok().err;
    says(&said, &["a/models/hps/HPS_v2_compressed.pt with random weights", "a/sd15/unet/"]);
    let shapes = |file: &str| weights::shapes(&dir.path(file)).unwrap();
    let vae = shapes("a/sd15/vae/diffusion_pytorch_model.safetensors");
    for name in ["query", "key", "value", "proj_attn"] {
        assert_eq!(vae[&format!("encoder.mid_block.attentions.0.{name}.weight")], [32, 32], "{name}");
    }
    let hps = pickle::read(&dir.path("a/models/hps/HPS_v2_compressed.pt")).unwrap();
    let query_key_value = &hps["visual.transformer.resblocks.1.attn.in_proj_weight"];
    assert_eq!(query_key_value.dims(), [240, 80]);
    assert_eq!(query_key_value.dtype(), candle_core::DType::F16);
    assert_eq!(hps["visual.proj"].dims(), [80, 64]);
    assert!((values(&hps["logit_scale"])[0] - 4.6).abs() < 0.01);
    assert_eq!(pickle::shapes(&dir.path("a/models/safe/pytorch_model.bin")).unwrap()["classifier.bias"], [2]);
    let head = shapes("a/models/aesthetic/sac+logos+ava1-l14-linearMSE.pth");
    assert_eq!(head["layers.0.weight"], [1024, 48]);
    // A layer keeps the variance of its input.
    let clip = pickle::read(&dir.path("a/models/clip/open_clip_pytorch_model.bin")).unwrap();
    let layer = values(&clip["transformer.resblocks.0.mlp.c_fc.weight"]);
    let variance = layer.iter().map(|x| x * x).sum::<f32>() / layer.len() as f32;
    assert!((variance * 64.0 - 1.0).abs() < 0.05, "{variance}");
    assert!(values(&clip["ln_final.weight"]).iter().all(|x| *x == 1.0));

    let before = tree(&dir.path("a"));
    assert_eq!(models("a", "0").ok().err, "", "what exists is kept");
    says(&models("a", "1").fails(2), &["another rehearsal", "\"seed\":1", "make clean-rehearse"]);
    assert!(tree(&dir.path("a")) == before);
    models("b", "0").ok();
    assert!(tree(&dir.path("b")) == before, "the same seed");
    models("c", "1").ok();
    let unet = "sd15/unet/diffusion_pytorch_model.safetensors";
    assert!(differ(&tensors(&dir.path("c").join(unet)), &tensors(&dir.path("a").join(unet))));

    let refused = dir.tool("rehearse").args(["models", "d", "--base", "sd15", "--metrics", "mps"]).fails(2);
    says(&refused, &["mps", "hps, clip, pickscore and aesthetic"]);
}

/// The numbers of weights that the published files hold.
#[test]
fn networks_of_the_published_size_have_the_published_number_of_weights() {
    use nets::process::PredictionType::{Epsilon, VPrediction};
    let count = |shapes: weights::Shapes| shapes.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>();
    for (family, prediction, unet, encoder) in [
        (Family::V1, Epsilon, 859_520_964, 123_060_480),
        (Family::V2, VPrediction, 865_910_724, 340_387_840),
        (Family::Xl, Epsilon, 2_567_463_684, 123_060_480),
    ] {
        let dir = Dir::new();
        for (path, config) in single::configs(family, prediction) {
            std::fs::create_dir_all(dir.path(path).parent().unwrap()).unwrap();
            dir.write(path, config.to_string());
        }
        assert_eq!(count(denoiser::shapes(&dir.path("unet")).unwrap()), unet, "{family:?}");
        assert_eq!(count(vae::shapes(&dir.path("vae"), true).unwrap()), 83_653_863);
        assert_eq!(count(text::shapes(&dir.path("text_encoder"), false).unwrap()), encoder, "{family:?}");
    }
}

#[test]
fn a_run_is_measured_and_its_exit_code_passed_on() {
    let dir = Dir::new();
    let run = |command: &[&str]| dir.tool("rehearse").args(["run", "--log", "log/measured.jsonl", "--"]).args(command);
    std::fs::create_dir(dir.path("log")).unwrap();
    run(&["sh", "-c", "head -c 1000 /dev/zero >log/x; sleep 0.2", "-o", "log/x"]).ok();
    let line: serde_json::Value = serde_json::from_slice(&dir.bytes("log/measured.jsonl")).unwrap();
    assert_eq!((&line["tool"], &line["output"], &line["written_bytes"]), (&"sh".into(), &"x".into(), &1000.into()));
    assert!(line["seconds"].as_f64().unwrap() > 0.2 && line["peak_bytes"].as_u64().unwrap() > 100_000, "{line}");
    // What its shell ran before is not counted: 100 MB, which `tail` keeps.
    let before =
        "head -c 100000000 /dev/zero | tail -c 100000000 >/dev/null; exec $0 run --log log/measured.jsonl -- true";
    assert!(
        Command::new("sh")
            .args(["-c", before, env!("CARGO_BIN_EXE_rehearse")])
            .current_dir(dir.path(""))
            .status()
            .unwrap()
            .success()
    );
    let log = String::from_utf8(dir.bytes("log/measured.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert!(line["peak_bytes"].as_u64().unwrap() < 50_000_000, "{line}");
    let failed = run(&["sh", "-c", "echo oh no >&2; exit 7"]).exits(7);
    says(
        &failed.err,
        &["oh no\nrehearse: `sh -c echo oh no >&2; exit 7` failed with exit code 7", "last line of log/measured.jsonl"],
    );
    let log = String::from_utf8(dir.bytes("log/measured.jsonl")).unwrap();
    says(log.lines().last().unwrap(), &["\"exit_code\":7"]);
    assert_eq!(log.matches("exit_code").count(), 1);
    assert_eq!(run(&["sh", "-c", "kill $$"]).run().code, Some(143));
    says(&run(&["no-such-program"]).fails(2), &["no-such-program"]);
    let counts = "pairs=4";
    let table = |budget: &str| {
        let args = ["table", "log/measured.jsonl", "--here", counts, "--paper", "pairs=400", "--budget", budget];
        dir.tool("rehearse").args(args)
    };
    says(table("sh=1").exits(1).text(), &["failed: sh (exit code 143)"]);
    run(&["sh", "-c", "true"]).ok(); // the same step again
    says(table("sh=1").ok().text(), &["sh x", "1000 bytes", "0.10 MB"]); // a hundred times as many pairs
    says(table("sh=0.0001").exits(1).text(), &["more memory than its budget: sh x"]);
    says(&table("sh").run().err, &["--budget", "NAME=NUMBER"]);
}
