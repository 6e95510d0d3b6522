//! `check`: every kind of file, whole, cut off, changed, and with something missing.
#![cfg(feature = "nets")]

mod util;

use std::fs;

use util::{world::*, *};

fn repository(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// One of each: tables, a folder of parts, a checkpoint, a folder of `encode`, reports.
fn world() -> Dir {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(8));
    copy(&oracle("base"), &dir.path("base"));
    let run = |line: &str| {
        let mut words = line.split_whitespace();
        dir.tool(words.next().unwrap()).args(words).ok();
    };
    run("score pairs.parquet --metrics colourfulness -o scores.parquet");
    run("vote scores.parquet --metrics colourfulness -o labels.parquet");
    for i in 0..2 {
        run(&format!("score pairs.parquet --metrics colourfulness --shard {i}/2 -o parts"));
    }
    run("encode pairs.parquet --base base --resolution 16 -o latents");
    run(
        "train latents --labels labels.parquet --base base --resolution 16 --steps 2 --train_batch_size 4 --checkpointing_steps 1 -o policy",
    );
    run("train latents --labels labels.parquet --base base --resolution 16 --steps 1 --lora-rank 2 -o lora");
    dir.write("prompts.txt", "a fox\na cat\n");
    run("prompts prompts.txt -o prompts.parquet");
    for model in ["base", "policy"] {
        run(&format!("sample prompts.parquet --base base --unet {model} --steps 1 -n 2 -o {model}.images"));
        run(&format!("score {model}.images --metrics colourfulness -o {model}.scored"));
    }
    run("winrate policy.scored base.scored --best-of 2 --json -o winrate.json");
    run("pairs pairs.parquet --labels labels.parquet --layout trl -o trl.parquet");
    run("report --winrates winrate.json --images base.images policy.images --sheet sheet.png -o report.html");
    run("report --winrates winrate.json --policy policy --card policy/README.md");
    fs::create_dir(dir.path("adapters")).unwrap();
    let adapters = "pytorch_lora_weights.safetensors";
    fs::copy(dir.path(&format!("lora/lora/{adapters}")), dir.path(&format!("adapters/{adapters}"))).unwrap();
    dir
}

const KINDS: &[(&str, &str, &str)] = &[
    ("pairs.parquet", "pairs", "8 rows"),
    ("scores.parquet", "scores", "colourfulness_0"),
    ("parts", "scores", "8 rows"),
    ("labels.parquet", "labels", "8 rows"),
    ("latents", "folder of `encode`", "captions"),
    ("policy", "checkpoint of `train`", "checkpoint-1: whole"),
    ("lora", "checkpoint of `train`", "lora"),
    ("base", "model (StableDiffusionPipeline)", "unet"),
    ("policy/log.jsonl", "log of `train`", "2 steps"),
    ("policy/unet/diffusion_pytorch_model.safetensors", "weights", "checksum"),
    ("prompts.parquet", "prompts", "2 rows"),
    ("policy.images", "images", "4 rows"),
    ("policy.scored", "scored images", "4 rows"),
    ("winrate.json", "win rates", "1 comparison"),
    ("trl.parquet", "pairs as TRL reads them", "chosen"),
    ("report.html", "page of `report`", ""),
    ("policy/README.md", "model card of `report`", ""),
    ("policy/config.toml", "settings of `train`", ""),
    ("sheet.png", "image", "pixels"),
    ("adapters", "adapters (LoRA)", "checksum"),
    ("prompts.txt", "text", "2 lines"),
];

#[test]
fn whole_files_and_what_made_them() {
    let dir = world();
    for (file, kind, holds) in KINDS {
        let run = dir.tool("check").arg(file).ok();
        says(run.text(), &[&format!("{file}: whole, {kind}"), holds]);
        let json = dir.tool("check").args([file, "--json", "--quick"]).ok().json();
        assert_eq!((&json["whole"], &json["files"][0]["file"]), (&true.into(), &(*file).into()));
    }
    let labels = dir.tool("check").arg("labels.parquet").ok();
    says(labels.text(), &["made by vote", "rule majority", "from score"]);
    let policy = dir.tool("check").arg("policy").ok();
    says(policy.text(), &["made by train", "learning_rate", "from vote"]);
    // Silent where that is asked for, and one answer for several.
    let all: Vec<_> = KINDS.iter().map(|(file, ..)| *file).collect();
    let run = dir.tool("check").arg("-q").args(&all).ok();
    assert!(run.out.is_empty() && run.err.is_empty());
    let run = dir.tool("check").arg(repository("pipelines/mini/base")).ok();
    says(run.text(), &["StableDiffusionPipeline", "text_encoder"]);
}

#[test]
fn files_that_are_cut_off_are_not_whole() {
    let dir = world();
    // A shorter text is a text.
    for (file, ..) in KINDS.iter().filter(|(file, ..)| dir.path(file).is_file() && *file != "prompts.txt") {
        let bytes = dir.bytes(file);
        let end = match *file {
            // Within a value: files of settings have no other end.
            "policy/config.toml" => bytes.iter().rposition(|&byte| byte == b'=').unwrap(),
            _ => bytes.len() * 2 / 3,
        };
        dir.write(file, &bytes[..end]);
        let run = dir.tool("check").args(["--quick", file]).exits(1);
        says(run.text(), &["NOT whole", "  ! "]);
        dir.write(file, &bytes);
        dir.tool("check").arg(file).ok();
    }
}

#[test]
fn changed_bytes_are_seen_where_there_is_a_checksum_or_a_page_breaks() {
    let dir = world();
    for file in ["policy/unet/diffusion_pytorch_model.safetensors", "policy/state/optimizer.safetensors"] {
        let mut bytes = dir.bytes(file);
        let at = bytes.len() - 100;
        bytes[at] ^= 1;
        dir.write(file, &bytes);
        dir.tool("check").args(["--quick", file]).ok();
        says(dir.tool("check").arg(file).exits(1).text(), &["damaged"]);
        says(dir.tool("check").arg("policy").exits(1).text(), &["policy: NOT whole", "damaged"]);
        bytes[at] ^= 1;
        dir.write(file, &bytes);
    }
    // A pickle has a checksum of each tensor, which stands in a zip archive behind its name and an extra field.
    let mut bytes = fs::read(repository("tests/fixtures/pickle/state_dict.pt")).unwrap();
    dir.write("flipped.pt", &bytes);
    dir.tool("check").arg("flipped.pt").ok();
    let name = b"state_dict/data/0";
    let at = bytes.windows(name.len()).position(|part| part == name).unwrap();
    let extra = usize::from(u16::from_le_bytes([bytes[at - 2], bytes[at - 1]]));
    bytes[at + name.len() + extra] ^= 1;
    dir.write("flipped.pt", &bytes);
    says(dir.tool("check").arg("flipped.pt").exits(1).text(), &["flipped.pt: NOT whole"]);
    let mut bytes = dir.bytes("scores.parquet");
    bytes[4..60].fill(0);
    dir.write("scores.parquet", &bytes);
    dir.tool("check").arg("scores.parquet").exits(1);
}

#[test]
fn what_is_missing_is_named() {
    let dir = world();
    let missing = |what: &str, file: &str, parts: &[&str]| {
        let (path, aside) = (dir.path(what), dir.path("aside"));
        fs::rename(&path, &aside).unwrap();
        says(dir.tool("check").arg(file).exits(1).text(), parts);
        fs::rename(&aside, &path).unwrap();
    };
    missing("parts/part-00001-of-00002.parquet", "parts", &["part-00001-of-00002.parquet", "--shard 1/2"]);
    missing("policy/unet/config.json", "policy", &["unet/config.json is missing"]);
    missing("policy/unet", "policy", &["neither unet/, transformer/ nor lora/"]);
    missing("policy/state/optimizer.safetensors", "policy", &["state/optimizer.safetensors is missing"]);
    missing("lora/lora/pytorch_lora_weights.safetensors", "lora", &["pytorch_lora_weights.safetensors"]);
    let kohya = dir.bytes("lora/lora/kohya.safetensors");
    dir.write("lora/lora/kohya.safetensors", &kohya[..100]);
    says(dir.tool("check").arg("lora").exits(1).text(), &["lora: NOT whole", "kohya.safetensors: "]);
    dir.write("lora/lora/kohya.safetensors", &kohya);
    let tables = "--images base.images policy.images --images-in folder -o beside.html";
    dir.tool("report").args(tables.split(' ')).ok();
    dir.tool("check").arg("beside.html").ok();
    let first = fs::read_dir(dir.path("beside-images")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(first).unwrap();
    says(
        dir.tool("check").arg("beside.html").exits(1).text(),
        &["beside.html: NOT whole", "1 of its images", "beside-images/shown-"],
    );
    missing("latents/captions.parquet", "latents", &["captions.parquet is missing"]);
    copy(&repository("pipelines/mini/base"), &dir.path("mini"));
    missing("mini/vae/diffusion_pytorch_model.safetensors", "mini", &["vae", "holds no weights"]);
    missing("mini/tokenizer/vocab.json", "mini", &["tokenizer/"]);
    missing("mini/scheduler/scheduler_config.json", "mini", &["scheduler/scheduler_config.json is missing"]);
    // Weights of another step than state/.
    let weights = "unet/diffusion_pytorch_model.safetensors";
    fs::copy(dir.path(&format!("policy/checkpoint-1/{weights}")), dir.path(&format!("policy/{weights}"))).unwrap();
    says(dir.tool("check").arg("policy").exits(1).text(), &["the weights do not belong to state/"]);
    // Columns and values.
    dir.put("narrow.parquet", &without(&pairs(4), "jpg_1"));
    says(dir.tool("check").arg("narrow.parquet").exits(1).text(), &["for a table of pairs it lacks jpg_1"]);
    let jpg = image(&pairs(2), "jpg_0", 0);
    dir.put("nulls.parquet", &with(&pairs(2), "jpg_1", images(&[Some(&jpg), None])));
    says(dir.tool("check").arg("nulls.parquet").exits(1).text(), &["1 row has no value in column 'jpg_1'"]);
    // A cache whose pairs name an image that it does not hold.
    let latents = dir.get("latents/latents.parquet");
    dir.put("latents/latents.parquet", &latents.slice(1, latents.num_rows() - 1));
    says(dir.tool("check").arg("latents").exits(1).text(), &["latents.parquet lacks"]);
    // Unfinished work.
    fs::create_dir(dir.path("x.partial")).unwrap();
    dir.write("x.partial/plan.json", "rows");
    says(dir.tool("check").arg("x.partial").exits(1).text(), &["unfinished work", "the same command continues"]);
    for (name, bytes) in [
        ("page.html", &b"<html></html>"[..]),
        ("empty.parquet", b""),
        ("begun", b"PAR1..."),
        ("half.json", b"{\"a\": "),
        ("half.jsonl", b"{\"a\": 1}\n{\"a\":\n"),
    ] {
        dir.write(name, bytes);
        says(dir.tool("check").arg(name).exits(1).text(), &[&format!("{name}: NOT whole")]);
    }
}

#[test]
fn what_is_not_read_here_is_not_called_damaged() {
    let dir = Dir::new();
    for (name, bytes) in [("x.json", &b"{\"a\": 1}"[..]), ("notes.md", b"# Notes\n"), ("run.mk", b"A = 1\n")] {
        dir.write(name, bytes);
        says(dir.tool("check").arg(name).exits(1).text(), &[&format!("{name}: unknown"), "  ? "]);
        let json = dir.tool("check").args([name, "--json"]).exits(1).json();
        assert!(json["files"][0]["whole"].is_null() && json["files"][0]["unknown"].is_string(), "{json}");
    }
    for (name, bytes, kind) in [
        ("pairs.jsonl", &b"{\"winner\": \"a.png\"}\n{\"winner\": \"b.png\"}\n"[..], "lines of JSON"),
        ("one.jsonl", b"{\"winner\": \"a.png\"}\n", "lines of JSON"),
        ("pairs.json", b"[{\"prompt\": \"a\"}]", "list in JSON"),
    ] {
        dir.write(name, bytes);
        says(dir.tool("check").arg(name).ok().text(), &[&format!("{name}: whole, {kind}")]);
    }
}

/// Lists name images, which lie beside them or below --root.
#[test]
fn images_that_a_list_names_must_be_there() {
    let dir = Dir::new();
    fs::create_dir_all(dir.path("lists/in")).unwrap();
    let image = |name: &str| drop(dir.write(name, image(&pairs(1), "jpg_0", 0)));
    let lists: [(&str, &str); 6] = [
        ("pairs.csv", "winner,loser,prompt\nin/a.png,in/b.png,a fox\nin/c.png,in/a.png,a cat\n"),
        ("chosen.tsv", "prompt\tChosen\tRejected\na fox\tin/a.png\tin/b.png\na cat\tin/c.png\tin/a.png\n"),
        ("sides.csv", "prompt,image_0,image_1,label_0\na fox,in/a.png,in/b.png,1\na cat,in/c.png,in/a.png,0\n"),
        (
            "pairs.jsonl",
            "{\"prompt\": \"x\", \"path1\": \"in/a.png\", \"path2\": \"in/b.png\"}\n{\"path1\": \"in/c.png\", \"path2\": \"in/a.png\"}\n",
        ),
        (
            "pairs.json",
            "[{\"winner\": \"in/a.png\", \"loser\": \"in/b.png\"},\n {\"w\": \"in/c.png\", \"l\": \"in/a.png\"}]",
        ),
        (
            "hpd.json",
            "[{\"image_path\": [\"in/a.png\", \"in/b.png\", \"in/c.png\", \"in/a.png\"], \"rank\": [1, 2, 3, 4]}]",
        ),
    ];
    for (name, text) in lists {
        let file = dir.write(&format!("lists/{name}"), text).display().to_string();
        let check = |args: &[&str]| dir.tool("check").arg(&file).args(args);
        for (there, said) in [
            (&[][..], "4 of the 4 images that it names are missing or empty, first in/a.png, in/b.png, in/c.png"),
            (&["a"], "2 of the 4 images that it names are missing or empty, first in/b.png, in/c.png"),
            (&["a", "b"], "1 of the 4 images that it names are missing or empty, first in/c.png"),
        ] {
            there.iter().for_each(|image_of| image(&format!("lists/in/{image_of}.png")));
            let run = check(&[]).exits(1);
            says(run.text(), &[&format!("{name}: NOT whole"), said, "--root"]);
            check(&["--quick"]).ok();
        }
        dir.write("lists/in/c.png", b"");
        says(check(&[]).exits(1).text(), &["1 of the 4 images", "in/c.png"]);
        image("lists/in/c.png");
        says(check(&[]).ok().text(), &[&format!("{name}: whole"), "4 images, all of which are there"]);
        says(check(&["--root", "elsewhere"]).exits(1).text(), &["4 of the 4 images", "begin in elsewhere"]);
        fs::rename(dir.path("lists/in"), dir.path("in")).unwrap();
        check(&["--root", "."]).ok();
        fs::create_dir(dir.path("lists/in")).unwrap();
        fs::remove_dir_all(dir.path("in")).unwrap();
    }
}

#[test]
fn a_model_is_found_by_its_hub_id_and_needs_no_safety_checker() {
    let dir = Dir::new();
    let snapshot = dir.path("hub/models--org--tiny/snapshots/main");
    copy(&oracle("base"), &snapshot);
    let check = |id: &str| {
        let mut tool = dir.tool("check").arg(id);
        tool.command.env("HF_HUB_CACHE", dir.path("hub"));
        tool
    };
    let index = "model_index.json";
    let mut parts: serde_json::Value = serde_json::from_slice(&fs::read(snapshot.join(index)).unwrap()).unwrap();
    parts["safety_checker"] = serde_json::json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
    fs::write(snapshot.join(index), parts.to_string()).unwrap();
    says(check("org/tiny").ok().text(), &["org/tiny: whole, model", "without safety_checker"]);
    fs::remove_dir_all(snapshot.join("vae")).unwrap();
    says(check("org/tiny").exits(1).text(), &["org/tiny: NOT whole", "vae/config.json is missing"]);
    says(&check("org/other").exits(2).err, &["org/other does not exist", "hub"]);
}

#[test]
fn a_folder_of_several_things_is_looked_into() {
    let dir = Dir::new();
    fs::create_dir_all(dir.path("run/deep/er")).unwrap();
    fs::create_dir_all(dir.path("run/parts")).unwrap();
    dir.put("run/pairs.parquet", &pairs(4));
    dir.put("run/deep/er/more.parquet", &pairs(2));
    dir.put("run/parts/part-00000-of-00002.parquet", &pairs(2));
    dir.put("run/parts/part-00001-of-00002.parquet", &pairs(2));
    copy(&repository("pipelines/mini/scorers/clip"), &dir.path("run/clip"));
    dir.write("run/README.md", "# Notes\n");
    let seen = [
        "run: whole, folder", "  pairs.parquet: whole, pairs", "  deep/er/more.parquet: whole, pairs",
        "  parts: whole, pairs", "  clip: whole, network", "  1 file of kinds that are not read here",
    ];
    says(dir.tool("check").arg("run").ok().text(), &seen);
    fs::remove_file(dir.path("run/parts/part-00001-of-00002.parquet")).unwrap();
    says(dir.tool("check").arg("run").exits(1).text(), &["run: NOT whole", "  ! parts: ", "--shard 1/2"]);
    fs::create_dir(dir.path("empty")).unwrap();
    says(dir.tool("check").arg("empty").exits(1).text(), &["empty: unknown"]);
    // What leads nowhere is no reason to be silent.
    fs::create_dir(dir.path("links")).unwrap();
    dir.put("links/pairs.parquet", &pairs(2));
    dir.tool("check").arg("links").ok();
    std::os::unix::fs::symlink(dir.path("gone"), dir.path("links/scores.parquet")).unwrap();
    says(dir.tool("check").arg("links").exits(1).text(), &["links: NOT whole", "scores.parquet: "]);
    std::os::unix::fs::symlink(dir.path("run"), dir.path("run/deep/loop")).unwrap();
    dir.tool("check").arg("run").exits(1);
}

#[test]
fn trouble_is_another_answer_than_no() {
    let dir = Dir::new();
    dir.put("猫 naïve.parquet", &pairs(2));
    let run = dir.tool("check").args(["猫 naïve.parquet", "nowhere.parquet"]).exits(2);
    says(run.text(), &["猫 naïve.parquet: whole, pairs"]);
    says(&run.err, &["nowhere.parquet"]);
}
