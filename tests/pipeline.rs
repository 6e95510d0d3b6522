//! `make reproduce`: the whole chain through the real programs, on a few pairs and prompts of the mini world.
#![cfg(feature = "nets")]

mod util;

use std::{path::Path, process::Command};

use arrow::{
    array::AsArray,
    compute::{concat_batches, filter_record_batch},
};
use nets::image::decode;
use util::*;

/// The chain in the order of `make -n`: each program, and the file that it makes.
const CHAIN: [&str; 17] = [
    "score scores.parquet", "vote labels/human.parquet", "vote labels/majority.parquet", "encode latents",
    "train DiffusionDPO", "train BalancedDPO", "prompts prompts.parquet", "sample images/base.parquet",
    "sample images/DiffusionDPO.parquet", "sample images/BalancedDPO.parquet", "score scored/base.parquet",
    "score scored/DiffusionDPO.parquet", "score scored/BalancedDPO.parquet", "winrate winrate.txt",
    "winrate winrate.json", "report report.html", "report sheet.png",
];

/// The experiment of the mini world, made tiny.
struct World {
    dir: Dir,
    bin: String,
}

impl World {
    fn new() -> Self {
        let dir = Dir::new();
        let mini = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/mini").join(name);
        let pairs = read_parquet(&mini("pairs.parquet"));
        dir.put("pairs.parquet", &pairs.slice(0, 12));
        // Two prompts of every set.
        let prompts = read_parquet(&mini("prompts.parquet"));
        let mut sets = std::collections::HashMap::<String, usize>::new();
        let keep = column_text(&prompts, "set").into_iter().map(|set| {
            let n = sets.entry(set).or_default();
            *n += 1;
            Some(*n <= 2)
        });
        let few = filter_record_batch(&prompts, &keep.collect()).unwrap();
        dir.put("prompts.parquet", &concat_batches(&few.schema(), [&few]).unwrap());
        let settings = "include pipelines/mini.mk
            STEPS = 2
            WARMUP = 1
            BATCH = 2
            ACCUMULATION = 1
            CHECKPOINT_STEPS = 1
            BalancedDPO.reference = hard:1
            IMAGES = 2
            SAMPLE_STEPS = 2";
        let here = dir.path("").display().to_string();
        let tables = format!("\nPAIRS = {here}pairs.parquet\nPROMPTS = {here}prompts.parquet\n");
        dir.write("tiny.mk", settings.replace("\n            ", "\n") + &tables);
        let score = Path::new(env!("CARGO_BIN_EXE_score"));
        let bin = score.parent().unwrap().display().to_string();
        Self { dir, bin }
    }

    fn command(&self, args: &[&str]) -> Command {
        let path = |name: &str| self.dir.path(name).display().to_string();
        let mut command = make(&["X=tiny", &format!("MK={}", path("tiny.mk")), &format!("RUNS={}", path("runs"))]);
        command.arg(format!("BIN={}", self.bin)).args(args);
        command
    }

    /// Runs make; returns what it printed, and the programs that it started (or would start), as in `CHAIN`.
    #[track_caller]
    fn make(&self, args: &[&str]) -> (String, Vec<String>) {
        let runs = self.dir.path("runs").display().to_string();
        let output = self.command(args).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let made = |line: &str| -> Option<String> {
            let (tool, args) = line.split_once(&format!("{}/", self.bin))?.1.split_once(' ')?;
            let after = |mark: &str| args.rsplit_once(mark).map(|(_, path)| path);
            let made = after(" -o ").or(after(" --sheet ")).or(after(" >")).or(after("} >"))?;
            let made = made.split(' ').next()?.strip_prefix(&format!("{runs}/tiny/"))?.trim_end_matches(".partial");
            Some(format!("{tool} {made}"))
        };
        let started = said.replace("\\\n", " ").lines().filter_map(made).collect();
        (said, started)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.dir.bytes(&format!("runs/tiny/{name}"))
    }
}

#[test]
fn a_dry_run_prints_the_chain_and_does_nothing() {
    let world = World::new();
    let before = world.dir.list();
    assert_eq!(world.make(&["-n", "reproduce"]).1, CHAIN);
    assert_eq!(world.dir.list(), before);
    // The experiment of the mini world itself.
    let run = make(&["-n", "reproduce", "RUNS=nowhere"]).output().unwrap();
    says(&String::from_utf8(run.stdout).unwrap(), &["cargo build --release", "pipelines/mini/pairs.parquet"]);
    let run = make(&["reproduce", "X=no"]).output().unwrap();
    assert_eq!(run.status.code(), Some(2));
    says(&String::from_utf8(run.stderr).unwrap(), &["there is no pipelines/no.mk", "X=mini"]);
}

/// A variable that nothing reads is refused, and a shorter run has the same shape: it refreshes the reference after half of its steps.
#[test]
fn variables_are_checked_and_follow_the_steps() {
    let plan = |variable: &str| make(&["-n", "reproduce", "RUNS=nowhere", "BIN=bin", variable]).output().unwrap();
    for (slip, known) in [
        ("GUIDENCE=7", "GUIDANCE"),
        ("steps=10", "STEPS"),
        ("BalancdDPO.reference=hard:3", "BalancedDPO.reference"),
        ("BalancedDPO.labls=human", "BalancedDPO.labels"),
    ] {
        let run = plan(slip);
        assert_eq!((run.status.code(), run.stdout.is_empty()), (Some(2), true), "{slip}");
        let name = slip.split('=').next().unwrap();
        says(&String::from_utf8(run.stderr).unwrap(), &[&format!("variable {name}; did you mean {known}?")]);
    }
    for (variable, parts) in [
        ("STEPS=120", ["--lr-warmup-steps 30 ", "--reference-mode hard:60 "]),
        ("STEPS=10", ["--lr-warmup-steps 2 ", "--reference-mode hard:5 "]),
        ("STEPS=1", ["--lr-warmup-steps 1 ", "--reference-mode hard:1 "]),
        ("BalancedDPO.reference=hard:7", ["--lr-warmup-steps 30 ", "--reference-mode hard:7 "]),
        ("RUN=env A=1", ["env A=1 bin/score ", "--reference-mode hard:60 "]),
    ] {
        let run = plan(variable);
        assert!(run.stderr.is_empty(), "{}", String::from_utf8_lossy(&run.stderr));
        says(&String::from_utf8(run.stdout).unwrap(), &parts);
    }
}

#[test]
fn in_parts_and_a_lost_part_alone_is_made_again() {
    let world = World::new();
    let parts = ["SHARDS=3", "RUN=env PART=1", "-j4"]; // any command that takes a command
    let (_, made) = world.make(&[&parts[..], &["reproduce"]].concat());
    let one = |made: &[String], what: &str| made.iter().filter(|m| *m == what).count();
    for (what, n) in [("score scores.parquet", 3), ("encode latents", 3), ("sample images/base.parquet", 3)] {
        assert_eq!(one(&made, what), n, "{what}: {made:?}");
    }
    assert_eq!(one(&made, "vote labels/majority.parquet"), 1);
    // The rows and scores are those of whole tables.
    let whole = World::new();
    whole.make(&["reproduce"]);
    let get = |world: &World, table: &str| world.dir.get(&format!("runs/tiny/{table}"));
    for table in ["scores.parquet", "scored/base.parquet"] {
        assert_eq!(get(&world, table).columns(), get(&whole, table).columns(), "{table}");
    }
    // A policy says what it was trained on, parts or a whole; its images are the same.
    let pixels = |world: &World| -> Vec<_> {
        let images = get(world, "images/BalancedDPO.parquet");
        column(&images, "image").as_binary::<i32>().iter().map(|png| decode(png.unwrap()).unwrap().data).collect()
    };
    assert!(pixels(&world) == pixels(&whole));
    assert!(world.bytes("winrate.txt") == whole.bytes("winrate.txt"));

    let lost = "runs/tiny/scored/base.parquet/part-00001-of-00003.parquet";
    let bytes = world.dir.bytes(lost);
    std::fs::remove_file(world.dir.path(lost)).unwrap();
    let error =
        world.dir.tool("winrate").args(["runs/tiny/scored/base.parquet", "runs/tiny/scored/base.parquet"]).fails(2);
    says(&error, &["part-00001-of-00003.parquet is missing", "--shard 1/3"]);
    let (_, made) = world.make(&[&parts[..], &["reproduce"]].concat());
    assert_eq!(
        made,
        ["score scored/base.parquet", "winrate winrate.txt", "winrate winrate.json", "report report.html"]
    );
    assert!(world.dir.bytes(lost) == bytes);
    // The number of parts stays what it was.
    let run = world.command(&["-n", "reproduce"]).output().unwrap();
    says(&String::from_utf8(run.stderr).unwrap(), &["was begun with SHARDS=3"]);
}

#[test]
fn everything_once_and_only_what_is_needed_again() {
    let world = World::new();
    let (said, made) = world.make(&["reproduce"]);
    assert_eq!(made, CHAIN);

    // Four tables (best, mean, change, joint): three comparisons, three sets and all, with n and intervals, and what the scorers are.
    let table = String::from_utf8(world.bytes("winrate.txt")).unwrap();
    assert!(said.contains(&table));
    for comparison in ["DiffusionDPO vs base", "BalancedDPO vs base", "BalancedDPO vs DiffusionDPO"] {
        for set in ["seen", "unseen-pair", "unseen-name", "all"] {
            let row =
                |line: &&str| line.split_once(comparison).is_some_and(|(_, rest)| rest.trim_start().starts_with(set));
            assert_eq!(table.lines().filter(row).count(), 4, "{comparison}, {set}: {table}");
        }
    }
    says(&table, &["hps", "clip", "pickscore", "aesthetic", "imagereward (held out)", " % [", "stand-ins"]);
    // The judge has no vote.
    let majority = world.dir.get("runs/tiny/labels/majority.parquet");
    assert!(majority.column_by_name("vote_hps").is_some() && majority.column_by_name("vote_imagereward").is_none());
    let json: serde_json::Value = serde_json::from_slice(&world.bytes("winrate.json")).unwrap();
    assert_eq!(json["comparisons"][0]["all"]["n"], 6);
    let sheet = decode(&world.bytes("sheet.png")).unwrap();
    assert!(sheet.height > 6 * 128 && sheet.width > 3 * 128);
    let log = String::from_utf8(world.bytes("BalancedDPO/log.jsonl")).unwrap();
    let refreshed = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["refreshed"].clone();
    assert_eq!(log.lines().map(refreshed).collect::<Vec<_>>(), [true, true]);

    // Once more: the same words, and no work.
    let (again, made) = world.make(&["reproduce"]);
    assert!(made.is_empty(), "{made:?}");
    assert!(said.ends_with(&again), "{again}");

    // What depends on a lost file is made again, with the same bytes, and nothing else is.
    let results = [
        "scores.parquet", "labels/majority.parquet", "images/BalancedDPO.parquet", "winrate.json", "report.html",
        "sheet.png",
    ];
    let first = results.map(|name| world.bytes(name));
    let balanced = [
        "train BalancedDPO", "sample images/BalancedDPO.parquet", "score scored/BalancedDPO.parquet",
        "winrate winrate.txt", "winrate winrate.json", "report report.html", "report sheet.png",
    ];
    for (lost, needed) in [
        ("labels/majority.parquet", [&["vote labels/majority.parquet"], &balanced[..]].concat()),
        ("BalancedDPO/unet/diffusion_pytorch_model.safetensors", balanced.to_vec()),
        ("images/BalancedDPO.parquet", balanced[1..].to_vec()),
        ("scored/BalancedDPO.parquet", balanced[2..6].to_vec()), // the sheet is of images, not of scores
        ("winrate.txt", balanced[3..4].to_vec()),
    ] {
        std::fs::remove_file(world.dir.path("runs/tiny").join(lost)).unwrap();
        assert_eq!(world.make(&["-n", "reproduce"]).1, needed, "{lost}");
        assert_eq!(world.make(&["reproduce"]).1, needed, "{lost}");
        assert!(results.map(|name| world.bytes(name)) == first, "{lost}");
    }

    // A setting given by hand counts like one in the file; asking alone changes nothing.
    assert_eq!(world.make(&["-n", "reproduce", "GUIDANCE=2"]).1[..3], CHAIN[7..10]);
    assert_eq!(world.make(&["-n", "reproduce", "DiffusionDPO.reference=hard:1"]).1[..2], [CHAIN[4], CHAIN[8]]);
    assert!(world.make(&["-n", "reproduce"]).1.is_empty());
    // Finished parts of other work are kept under another name.
    let parts = "runs/tiny/images/base.parquet.partial";
    std::fs::create_dir(world.dir.path(parts)).unwrap();
    world.dir.write(&format!("{parts}/plan.json"), "other work");
    assert_eq!(world.make(&["reproduce", "SAMPLE_STEPS=1"]).1[..3], CHAIN[7..10]);
    assert!(!world.dir.path(parts).exists());
    assert_eq!(world.dir.bytes(&format!("{parts}.1/plan.json")), b"other work");
}

/// `make protocol` draws from models that are here, and from no other; it trains nothing.
#[test]
fn published_models_are_judged_without_training() {
    let world = World::new();
    let base = "pipelines/mini/base";
    let [one, two] = [format!("UNETS=twin={base}"), format!("UNETS=twin={base} other={base}")];
    let (said, made) = world.make(&["protocol", &one]);
    let chain =
        ["prompts prompts", "sample images/base", "score scored/base", "sample images/twin", "score scored/twin"];
    let expected: Vec<_> = chain.iter().map(|made| format!("{}.parquet", made.replace(' ', " protocol/"))).collect();
    assert_eq!(made, [&expected[..], &["winrate protocol/table.txt".into()]].concat());
    // One image per prompt of each set, the judges' columns, and equal images tie.
    let sets = ["seen", "unseen-pair", "unseen-name", "validation"];
    says(&said, &["mean score of 1 images", "imagereward", "hps", "twin vs base", "won", "stand-ins"]);
    for set in sets {
        let tied = |line: &str| {
            line.starts_with("twin vs base")
                && line.contains(&format!(" {set} "))
                && line.ends_with("0.0 % 100.0 %   0.0 %")
        };
        assert_eq!(said.lines().filter(|line| tied(line)).count(), 1, "{set}: {said}");
    }
    assert_eq!(world.make(&["protocol", &one]).1, [""; 0]);
    // Another model is drawn from, and the first ones are not drawn from again.
    let (said, made) = world.make(&["protocol", &two]);
    assert_eq!(
        made,
        ["sample protocol/images/other.parquet", "score protocol/scored/other.parquet", "winrate protocol/table.txt"]
    );
    says(&said, &["other vs base"]);
    // A name for another folder is another model.
    let moved = world.command(&["-n", "protocol", "UNETS=twin=nowhere"]).output().unwrap();
    says(&String::from_utf8(moved.stdout).unwrap(), &["--unet nowhere --name twin"]);
    // One that is not there, or has no weights, is noticed before any work.
    std::fs::create_dir_all(world.dir.path("empty/unet")).unwrap();
    let empty = world.dir.path("empty").display().to_string();
    for lost in ["nowhere", "org/nowhere", &empty] {
        let table = world.bytes("protocol/table.txt");
        std::fs::remove_file(world.dir.path("runs/tiny/protocol/prompts.parquet")).unwrap();
        let two = format!("UNETS=twin={base} lost={lost}");
        let refused = world.command(&["protocol", &two]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2));
        says(&String::from_utf8(refused.stderr).unwrap(), &[&format!("protocol: {lost} cannot be drawn from")]);
        assert!(!world.dir.path("runs/tiny/protocol/prompts.parquet").exists());
        assert_eq!(world.bytes("protocol/table.txt"), table);
        world.make(&["protocol", &format!("UNETS=twin={base} other={base}")]);
    }
    let refused = world.command(&["-n", "protocol", "UNETS=base=nowhere"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    says(&String::from_utf8(refused.stderr).unwrap(), &["`base` is the name of"]);
}

/// Programs that only create the files that the real ones would write. Each notes in `log` its name and, in brackets, every argument.
fn stand_ins(dir: &Dir) -> String {
    let script = r#"#!/bin/bash
set -eu
tool=${0##*/} out= shard= sheet=
echo "$tool$(printf ' [%s]' "$@")" >>"${0%/*}/log"
while (($#)); do
    case $1 in -o) out=$2 ;; --shard) shard=$2 ;; --sheet) sheet=$2 ;; esac
    shift
done
[[ $sheet ]] && touch "$sheet"
[[ $out && $out != - ]] || exit 0
if [[ $shard ]]; then
    [[ $tool == encode ]] && out=$out/latents.parquet
    mkdir -p "$out"
    touch "$out/$(printf part-%05d-of-%05d.parquet "${shard%/*}" "${shard#*/}")"
    exit
fi
mkdir -p "$(dirname "$out")"
case $tool in
train) mkdir -p "$out/unet" && touch "$out/log.jsonl" "$out/unet/diffusion_pytorch_model.safetensors" ;;
encode) mkdir -p "$out" && touch "$out/latents.parquet" ;;
*) touch "$out" ;;
esac
"#;
    std::fs::create_dir(dir.path("bin")).unwrap();
    for tool in ["prompts", "score", "vote", "encode", "train", "refresh-ref", "sample", "winrate", "report"] {
        let path = dir.write(&format!("bin/{tool}"), script);
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    dir.path("bin").display().to_string()
}

/// The larger experiments: what was made is not planned again, and what was not made is.
#[test]
fn what_takes_hours_is_done_once() {
    let dir = Dir::new();
    let bin = stand_ins(&dir);
    // What Stable Diffusion's experiments start from.
    for file in [
        "sdxl/model_index.json", "sdxl/unet/weights", "models/hps/weights", "prompts/pickapic.txt",
        "prompts/PartiPrompts.tsv", "prompts/hpdv2.json", "pickapic_v2/data/train-00000.parquet",
    ] {
        std::fs::create_dir_all(dir.path(&format!("data/{file}")).parent().unwrap()).unwrap();
        dir.write(&format!("data/{file}"), "");
    }
    let given = [format!("BIN={bin}"), format!("RUNS={}", dir.path("runs").display())];
    let data = format!("DATA={}", dir.path("data").display());
    let run = |args: &[&str]| -> Vec<String> {
        let output = make(&args.iter().copied().chain(given.iter().map(String::as_str)).collect::<Vec<_>>()).output();
        let output = output.unwrap();
        let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && error.is_empty(), "{args:?}: {said}{error}");
        let started = said.replace("\\\n", " ");
        started.lines().filter(|line| line.contains(&format!("{bin}/"))).map(String::from).collect()
    };
    let sdxl = ["reproduce", "X=sdxl", data.as_str(), "SHARDS=2", "RUN=env PART=1", "-j4"];
    let experiments: [(&[&str], &str, usize); 5] = [
        (&["reproduce", "X=ablations", "ROWS=vote-hps K-30", "SEEDS=0 1"], "STEPS=7", 4),
        (&["reproduce", "X=tune", "ROWS=beta-2000 steps-300", "SEEDS=0"], "STEPS=7", 2),
        (&sdxl, "STEPS=7", 2),
        (&["reproduce", "X=mini"], "STEPS=7", 2),
        (&["rounds", "X=mini", "ROUNDS=2"], "ROUND_STEPS=7", 2),
    ];
    for (args, other, policies) in experiments {
        let trains = |plan: &[String]| plan.iter().filter(|line| line.contains(&format!("{bin}/train "))).count();
        let planned = run(&[&["-n"], args].concat());
        assert_eq!(trains(&planned), policies, "{args:?}");
        let made = run(args);
        assert_eq!(made.len(), planned.len(), "{args:?}");
        assert_eq!(run(&[&["-n"], args].concat()), [""; 0], "{args:?}");
        assert_eq!(run(args), [""; 0], "{args:?}");
        assert_eq!(trains(&run(&[&["-n", other], args].concat())), policies, "{args:?}");
    }
    // Each policy was trained once.
    let log = String::from_utf8(dir.bytes("bin/log")).unwrap();
    assert_eq!(log.lines().filter(|line| line.starts_with("train ")).count(), 4 + 2 + 2 + 2 + 2);
}

/// An experiment with stand-ins for its programs and its base: what make prints to standard error.
struct StandIns {
    dir: Dir,
    fixed: Vec<String>,
}

impl StandIns {
    fn new() -> Self {
        let dir = Dir::new();
        let bin = stand_ins(&dir);
        std::fs::create_dir_all(dir.path("base/unet")).unwrap();
        dir.write("base/unet/weights", "");
        let path = |name: &str| dir.path(name).display().to_string();
        let fixed = vec![format!("BIN={bin}"), format!("RUNS={}", path("runs")), format!("BASE={}", path("base"))];
        Self { dir, fixed }
    }

    /// Runs make; returns the log of the programs that ran, and what make printed to standard error.
    #[track_caller]
    fn make(&self, args: &[&str]) -> (String, String) {
        self.dir.write("bin/log", "");
        let output = make(args).args(&self.fixed).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {error}");
        (String::from_utf8(self.dir.bytes("bin/log")).unwrap(), error)
    }
}

/// Settings may hold anything that a shell can quote. Each reaches its program as written, and does not rerun its stage every time.
#[test]
fn settings_with_quotes_and_signs() {
    let world = StandIns::new();
    world.make(&["reproduce"]);
    for (setting, argument) in [
        ("SAMPLE_FLAGS=--negative 'grey, blurry'", "[--negative] [grey, blurry]"),
        (r#"SAMPLE_FLAGS=--negative "it's (bad""#, "[--negative] [it's (bad]"),
        (r"SAMPLE_FLAGS=--negative '$$5 #1 a\b %s'", r"[--negative] [$5 #1 a\b %s]"),
        (r#"SAMPLE_FLAGS=--negative '"' --name x=y"#, r#"[--negative] ["] [--name] [x=y]"#),
    ] {
        assert!(world.make(&["reproduce", setting]).0.contains(argument), "{setting}");
        assert_eq!(world.make(&["reproduce", setting]).0, "", "{setting}");
        let (rounds, _) = world.make(&["rounds", "ROUNDS=1", setting]);
        assert_eq!(rounds.matches(argument).count(), 2, "{setting}: {rounds}");
        assert_eq!(world.make(&["rounds", "ROUNDS=1", setting]).0, "", "{setting}");
    }
    // One character more is another setting.
    assert_ne!(world.make(&["reproduce", r#"SAMPLE_FLAGS=--negative '"' --name x=y="#]).0, "");

    let note = r#"it's "A, B" (C $5 #1 a\b %s"#;
    let setting = format!("NOTE={}", note.replace('$', "$$"));
    world.make(&["reproduce"]);
    assert!(world.make(&["reproduce", &setting]).0.contains(&format!("[--note] [{note}]")));
    assert_eq!(world.dir.bytes("runs/mini/winrate.txt"), format!("\n{note}\n").as_bytes());
    assert_eq!(world.make(&["reproduce", &setting]).0, "");
}

/// A policy takes hours or days. When an input is newer, for example after a second download, the old policy stays.
#[test]
fn a_policy_is_never_deleted() {
    let world = StandIns::new();
    let both = || [world.make(&["reproduce"]), world.make(&["rounds", "ROUNDS=1"])];
    both();
    let policies = ["DiffusionDPO", "BalancedDPO", "rounds/1/policy"].map(|policy| format!("runs/mini/{policy}"));
    let weights = |folder: &str| format!("{folder}/unet/diffusion_pytorch_model.safetensors");
    for work in ["days of work", "more days of work"] {
        for policy in &policies {
            world.dir.write(&weights(policy), work);
            both(); // what depends on these weights
        }
        world.dir.write("base/unet/weights", "");
        let [(_, error), _] = both();
        says(&error, &[&format!("{} was made from other inputs", world.dir.path(&policies[1]).display())]);
        for policy in &policies {
            let mut kept =
                (1..9).map(|n| weights(&format!("{policy}.{n}"))).filter(|file| world.dir.path(file).exists());
            assert!(kept.any(|file| world.dir.bytes(&file) == work.as_bytes()), "{policy}: {work}");
            assert_eq!(world.dir.bytes(&weights(policy)), b"", "{policy} was trained again");
        }
    }
    // A training that was killed before it wrote anything leaves nothing to keep.
    std::fs::remove_dir_all(world.dir.path(&policies[0])).unwrap();
    std::fs::create_dir(world.dir.path(&policies[0])).unwrap();
    let (log, error) = world.make(&["reproduce"]);
    assert!(log.contains("train [") && !error.contains("DiffusionDPO"), "{log}{error}");
}

/// `train` refuses f16, in which small gradients are 0.
#[test]
fn no_experiment_trains_in_f16() {
    for (x, dtype) in [("mini", "f32"), ("sd15", "bf16"), ("sd21", "bf16"), ("sdxl", "bf16")] {
        let plan = make(&["-n", "reproduce", &format!("X={x}"), "BIN=bin", "RUNS=none"]).output().unwrap();
        let plan = String::from_utf8(plan.stdout).unwrap().replace("\\\n", " ");
        let trains: Vec<_> = plan.lines().filter(|line| line.trim().starts_with("bin/train ")).collect();
        assert!(
            trains.len() == 2 && trains.iter().all(|line| line.contains(&format!("--dtype {dtype} "))),
            "{x}: {plan}"
        );
    }
}

/// A row's own flags come after those of mini.mk, so they win.
#[test]
fn the_flags_of_a_row_win() {
    for (x, row, flag, theirs, own) in [
        ("tune", "beta-2000", "--beta-dpo", "5000", "2000"),
        ("tune", "steps-300", "--max-train-steps", "120", "300"),
        ("ablations", "guard-0.5", "--guard", "", "sdpo:0.5"),
    ] {
        let args = ["-n", "reproduce", &format!("X={x}"), &format!("ROWS={row}"), "SEEDS=0", "BIN=bin", "RUNS=none"];
        let plan = String::from_utf8(make(&args).output().unwrap().stdout).unwrap().replace("\\\n", " ");
        let train = plan.lines().find(|line| line.trim().starts_with("bin/train ")).unwrap();
        let words: Vec<_> = train.split_whitespace().collect();
        let values: Vec<_> = words.windows(2).filter(|w| w[0] == flag).map(|w| w[1]).collect();
        assert_eq!(values.join(" "), [theirs, own].join(" ").trim(), "{row}: {train}");
    }
}
