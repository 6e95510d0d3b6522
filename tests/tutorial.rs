//! pipelines/TUTORIAL.md and its notebook: every command runs as it stands, on the mini world, and does what the text says.
#![cfg(feature = "nets")]

mod util;

use std::{fs, path::Path, process::Command};

use util::*;

fn repository(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name).display().to_string()
}

/// A shell or an interpreter that finds our programs first, in a new folder.
fn command(dir: &Dir, program: &str) -> Command {
    let programs = Path::new(env!("CARGO_BIN_EXE_train")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(program);
    command.current_dir(dir.path("")).env("PATH", path).env("TERM", "dumb");
    command.env("BASE", repository("pipelines/mini/base")).env("SCORERS", repository("pipelines/mini/scorers"));
    command
}

/// The blocks of a document that are commands of the shell.
fn blocks(document: &str) -> Vec<String> {
    let text = fs::read_to_string(repository(document)).unwrap();
    text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Checks what both ways through the tutorial leave behind in `folder`.
fn has_worked(dir: &Dir, folder: &str) {
    let file = |name: &str| format!("{folder}{name}");
    assert_eq!(dir.get(&file("images.parquet")).num_rows(), 160);
    let labels = dir.get(&file("labels.parquet"));
    let used = column_f32(&labels, "weight").iter().filter(|weight| **weight > 0.0).count();
    assert!(labels.num_rows() == 40 && used > 20, "{used} pairs");
    for made in [
        "aligned/lora/pytorch_lora_weights.safetensors", "aligned/lora/kohya.safetensors", "aligned/config.toml",
        "report.html",
    ] {
        assert!(dir.path(&file(made)).exists(), "{made}");
    }
    // The model has moved towards what the metrics prefer.
    let winrate: serde_json::Value = serde_json::from_slice(&dir.bytes(&file("winrate.json"))).unwrap();
    let rates = &winrate["comparisons"][0]["all"]["metrics"];
    let rates: Vec<f64> =
        ["hps", "clip", "pickscore", "aesthetic"].iter().map(|m| rates[m]["rate"].as_f64().unwrap()).collect();
    assert!(rates.iter().sum::<f64>() / 4.0 > 0.4, "{rates:?}");
}

#[test]
fn the_tutorial_runs_as_it_stands() {
    let dir = Dir::new();
    let blocks = blocks("pipelines/TUTORIAL.md");
    assert!(blocks.len() >= 6);
    // The first block says where a user's own models lie.
    let (first, rest) = blocks.split_first().unwrap();
    assert_eq!(first, "export BASE=sd15 SCORERS=models\n");
    let script = format!("set -euo pipefail\n{}", rest.concat());
    let output = command(&dir, "bash").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    has_worked(&dir, "");
}

#[test]
fn the_notebook_has_the_tutorials_commands() {
    let text = fs::read_to_string(repository("pipelines/tutorial.ipynb")).unwrap();
    let notebook: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cells = notebook["cells"].as_array().unwrap();
    let code = cells.iter().filter(|cell| cell["cell_type"] == "code");
    // No output is stored, and no machine's name.
    let code: Vec<String> = code
        .map(|cell| {
            assert!(cell["outputs"].as_array().unwrap().is_empty() && cell["execution_count"].is_null());
            cell["source"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect()
        })
        .collect();
    for flags in [
        "-n 4 --scheduler dpmpp --steps 15 --guidance 5 -o images.parquet",
        "--pairs best-worst -o labels.parquet",
        "--lora-rank 8 --merge --learning-rate 1e-4 --beta-dpo 2000",
        "--max-train-steps 120 --train-batch-size 4 --checkpointing-steps 0 -o aligned",
    ] {
        assert!(code.concat().contains(flags) && blocks("pipelines/TUTORIAL.md").concat().contains(flags), "{flags}");
    }
}

#[test]
#[ignore = "needs Jupyter's nbconvert, and Python with pandas, pyarrow and Pillow"]
fn the_notebook_runs() {
    let dir = Dir::new();
    let notebook = repository("pipelines/tutorial.ipynb");
    let mut jupyter = command(&dir, "jupyter");
    jupyter.args(["nbconvert", "--to", "notebook", "--execute", &notebook, "--output-dir"]).arg(dir.path(""));
    let output = jupyter.env("FOLDER", dir.path("made")).output().expect("jupyter is missing");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    has_worked(&dir, "made/");
    // Tables and pictures are shown inline.
    let text = String::from_utf8(dir.bytes("tutorial.ipynb")).unwrap();
    says(&text, &["image/png", "text/html", "p_holm"]);
}
