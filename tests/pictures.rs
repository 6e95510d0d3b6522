//! Pictures while it trains: their files, TensorBoard, the page, and the page that is served while a run goes on.
#![cfg(feature = "nets")]

mod util;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use arrow::array::AsArray;
use util::{world::*, *};

const LINE: &str = "pairs.parquet --labels labels.parquet --base base --resolution 16 --train_batch_size 4 --lr 1e-3 \
                    --lr_scheduler constant --seed 3 --max_train_steps 4 --checkpointing_steps 2";

fn world() -> Dir {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(12));
    dir.put("labels.parquet", &labels(&pairs(12), some));
    copy(&oracle("base"), &dir.path("base"));
    dir.write("prompts.txt", "fox, flat style\nowl, 3d style\na third one\n");
    dir
}

fn train(dir: &Dir, rest: &str) {
    dir.tool("train").args(LINE.split_whitespace()).args(rest.split_whitespace()).ok();
}

fn pixels(png: &[u8]) -> Vec<u8> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    pixels
}

#[test]
fn pictures_are_those_that_sample_draws_and_change_nothing_else() {
    let dir = world();
    train(&dir, "-o plain");
    train(
        &dir,
        "-o drawn --sample-every 2 --sample-prompts prompts.txt --sample-max 2 --sample-steps 5 --sample-guidance 3 --report-to tensorboard",
    );
    let weights = "unet/diffusion_pytorch_model.safetensors";
    assert!(
        dir.bytes(&format!("plain/{weights}")) == dir.bytes(&format!("drawn/{weights}")),
        "the pictures changed the run"
    );
    assert_eq!(dir.bytes("drawn/pictures/prompts.txt"), b"fox, flat style\nowl, 3d style\n");
    let picture = |step: &str, i: usize| pixels(&dir.bytes(&format!("drawn/pictures/{step}/0{i}.png")));
    for (step, unet) in [("base", "base"), ("step-000002", "drawn/checkpoint-2"), ("step-000004", "drawn")] {
        let images = format!("{step}.images");
        let sample = dir
            .tool("sample")
            .args(["prompts.txt", "--base", "base", "--unet", unet, "--steps", "5", "--guidance", "3"]);
        sample
            .args(["--seed", "3", "--scheduler", "ddim", "--height", "16", "--width", "16", "-o", &images])
            .args(["--batch", "1"])
            .ok();
        let images = dir.get(&images);
        let images = column(&images, "image").as_binary::<i32>();
        for i in 0..2 {
            assert!(picture(step, i) == pixels(images.value(i)), "{step}, picture {i}");
        }
    }
    assert!(picture("base", 0) != picture("step-000004", 0));
    assert!(!dir.path("drawn/pictures/base/02.png").exists());
    let events = fs::read_dir(dir.path("drawn/tensorboard")).unwrap().next().unwrap().unwrap().path();
    let events = fs::read(events).unwrap();
    let times = |part: &[u8]| events.windows(part.len()).filter(|window| *window == part).count();
    assert_eq!(
        (times(b"pictures/00/policy"), times(b"pictures/01/policy"), times(b"pictures/00/base"), times(b"\x89PNG")),
        (2, 2, 1, 6)
    );
}

#[test]
fn win_rates_of_the_pictures_are_those_of_score_and_winrate() {
    let dir = world();
    let scorers = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/mini/scorers").display().to_string();
    train(
        &dir,
        &format!(
            "-o out --lora-rank 2 --merge --sample-every 4 --sample-prompt one --sample-prompt two --sample-prompts prompts.txt --sample-steps 3 --sample-models {scorers}"
        ),
    );
    let lines = String::from_utf8(dir.bytes("out/pictures/winrates.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(lines.trim()).unwrap();
    assert_eq!((&line["step"], &line["n"]), (&4.into(), &5.into()));
    dir.write("all.txt", "one\ntwo\nfox, flat style\nowl, 3d style\na third one\n");
    for unet in ["base", "out"] {
        let sample = dir
            .tool("sample")
            .args(["all.txt", "--base", "base", "--unet", unet, "--steps", "3", "--guidance", "7.5", "--seed", "3"]);
        sample.args(["--height", "16", "--width", "16", "-o", &format!("{unet}.images")]).ok();
        dir.tool("score").args([&format!("{unet}.images"), "--models", &scorers, "-o", &format!("{unet}.scored")]).ok();
    }
    let winrate = dir.tool("winrate").args(["out.scored", "base.scored", "--best-of", "1", "--json"]).ok().json();
    for metric in ["hps", "clip", "pickscore", "aesthetic"] {
        let (ours, theirs) = (&line["metrics"][metric], &winrate["comparisons"][0]["all"]["metrics"][metric]);
        for key in ["wins", "ties", "rate", "low", "high"] {
            assert_eq!(ours[key], theirs[key], "{metric} {key}");
        }
    }
    // The page shows them.
    dir.tool("report").args(["--logs", "out/log.jsonl", "-o", "report.html"]).ok();
    let page = String::from_utf8(dir.bytes("report.html")).unwrap();
    says(&page, &["Pictures while training", "step 4", "fox, flat style", "win rate over the base"]);
    assert_eq!(page.matches("<img").count(), 2 * 5);
}

#[test]
fn what_is_missing_is_said_before_the_first_step() {
    let dir = world();
    let fails = |rest: &str| {
        dir.tool("train").args(LINE.split_whitespace()).args(["-q", "-o", "out"]).args(rest.split_whitespace()).fails(2)
    };
    says(&fails("--sample-every 2"), &["--sample-prompt"]);
    says(&fails("--sample-every 2 --sample-prompts no.txt"), &["no.txt"]);
    says(&fails("--sample-every 2 --sample-prompt x --sample-models base"), &["--sample-models", "no metric"]);
    assert!(!dir.path("out/log.jsonl").exists());
}

#[test]
fn a_run_is_watched_on_the_loopback_address() {
    let dir = world();
    fs::create_dir(dir.path("out")).unwrap();
    let mut report = dir.tool("report").args(["--watch", "out"]);
    let mut child = report.command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let get = |path: &str, host: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    says(&get("/", &address), &["200 OK", "no log.jsonl yet"]);
    let before = get("/version", &address);
    train(&dir, "-o out --sample-every 2 --sample-prompt fox --sample-steps 2 --sample-guidance 1");
    wait_for("the page of the run", || get("/", &address).contains("Pictures while training"));
    let page = get("/", &address);
    says(&page, &["Training", "step 4", "<img", "connect-src 'self'", "location.reload()"]);
    assert!(get("/version", &address) != before);
    says(&get("/other", &address), &["404"]);
    says(&get("/", "evil.example:80"), &["403"]);
    assert!(std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
}
