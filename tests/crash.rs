//! Death at each change of the file system, by tests/crash/shim.c. Whatever the moment: what was whole before is still whole, the
//! same command then comes to its right end, and other work to the same output is done rightly or refused. So is a second run
//! at the same time.
#![cfg(all(feature = "nets", target_os = "linux"))]

mod util;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use util::{world::*, *};

/// A command that writes `out`, and one that writes other content there.
struct Work {
    command: &'static str,
    other: &'static str,
    /// What makes an older `out` of the same kind, where the work replaces one.
    older: Option<&'static str>,
    /// What the same command needs to continue.
    again: &'static str,
}

const WORKS: &[Work] = &[
    work("prompts prompts.parquet -o out --max 4", "--max 3"),
    work("vote scores.parquet -o out", "--rule soft"),
    over("vote scores.parquet -o out", "--rule soft", "vote scores.parquet --rule unanimous -o out"),
    work("winrate a.parquet b.parquet --best-of 1 --json -o out", "--seed 7"),
    work("report --scored a.parquet b.parquet -o out", "--title other"),
    work("refresh-ref --policy policy --reference base --rate 0.5 -o out", "--rate 0.25"),
    work("score pairs.parquet --metrics colourfulness -o out", "--skip-bad"),
    over("score pairs.parquet --metrics colourfulness -o out", "--skip-bad", "vote scores.parquet -o out"),
    work("sample prompts.parquet --base base --steps 1 --batch 2 -o out", "--seed 3"),
    work("encode pairs.parquet --base base --resolution 16 -o out", "--resolution 8"),
    over(
        "encode pairs.parquet --base base --resolution 16 -o out", "--resolution 8",
        "encode few.parquet --base base --resolution 16 -o out",
    ),
    Work {
        command: "train few.parquet --labels labels.parquet --base base --resolution 16 --max-train-steps 2 --lr 1e-4 \
                  --train-batch-size 2 --checkpointing-steps 1 -o out",
        other: "--lr 2e-4",
        older: None,
        again: "--resume-from-checkpoint latest",
    },
    Work {
        command: "train few.parquet --labels labels.parquet --base base --resolution 16 --max-train-steps 2 --lr 1e-4 \
                  --train-batch-size 2 --checkpointing-steps 1 --lora-rank 2 --merge --reference-mode ema:0.05 -o out",
        other: "--lr 2e-4",
        older: None,
        again: "--resume-from-checkpoint latest",
    },
];

const fn work(command: &'static str, other: &'static str) -> Work {
    Work { command, other, older: None, again: "" }
}

const fn over(command: &'static str, other: &'static str, older: &'static str) -> Work {
    Work { command, other, older: Some(older), again: "" }
}

/// Long work has many equal changes: this many of them are tried, the last ones all.
const MOST: usize = 24;

fn world() -> Dir {
    let dir = Dir::new();
    let scores_of = |x: f32| vec![Some(x); 6];
    dir.put("prompts.parquet", &table(vec![("prompt", texts((0..5).map(|i| format!("prompt {i}"))))]));
    dir.put("scores.parquet", &scores(&[None; 6], &[("hps", &scores_of(0.25), &scores_of(0.5))]));
    for (file, shift) in [("a.parquet", 0.5), ("b.parquet", 0.0)] {
        let images: Vec<_> = (0..6).map(|i| vec![i as f32 * 0.3]).collect();
        dir.put(file, &scored(file, &["hps"], &images, |_, x| x.sin() + shift));
    }
    dir.put("pairs.parquet", &pairs(140));
    dir.put("few.parquet", &pairs(6));
    dir.put("labels.parquet", &labels(&pairs(6), some));
    copy(&oracle("base"), &dir.path("base"));
    copy(&oracle("policy"), &dir.path("policy"));
    dir
}

/// The shim, compiled. The programs need a C compiler too.
fn shim(dir: &Dir) -> PathBuf {
    let (source, library) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/shim.c"), dir.path("shim.so"));
    let compiled = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(compiled.expect("the C compiler `cc` is missing").success());
    library
}

fn tool(dir: &Dir, command: &str, more: &str) -> Tool {
    let mut words = command.split_whitespace().chain(more.split_whitespace());
    let tool = dir.tool(words.next().unwrap());
    tool.args(words).args(["--threads", "1", "-q"])
}

/// What is in `out`, without what depends on the clock. `None` if nothing is.
fn content(dir: &Dir) -> Option<BTreeMap<PathBuf, Vec<u8>>> {
    let out = dir.path("out");
    if out.is_file() {
        return Some([(PathBuf::new(), std::fs::read(out).unwrap())].into());
    }
    let mut all = out.is_dir().then(|| tree(&out))?;
    all.retain(|name, _| !name.starts_with("log.jsonl") && !name.ends_with(".lock"));
    Some(all)
}

fn clear(dir: &Dir, work: &Work) {
    for name in dir.list().iter().filter(|name| name.starts_with("out")) {
        let path = dir.path(name);
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    work.older.iter().for_each(|older| drop(tool(dir, older, "").ok()));
}

/// Runs the command until it dies just before its change `at`.
fn die(dir: &Dir, shim: &Path, command: &str, at: usize) {
    let mut command = tool(dir, command, "").command;
    command.env("LD_PRELOAD", shim).env("CRASH_AT", at.to_string());
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.signal() == Some(9) || status.success(), "{status}");
}

/// The content that the command makes, and how many changes it takes.
fn whole(dir: &Dir, shim: &Path, work: &Work, more: &str) -> (BTreeMap<PathBuf, Vec<u8>>, usize) {
    clear(dir, work);
    let mut counted = tool(dir, work.command, more);
    counted.command.env("LD_PRELOAD", shim).env("CRASH_COUNT", dir.path("changes"));
    counted.ok();
    (content(dir).unwrap(), std::fs::read_to_string(dir.path("changes")).unwrap().parse().unwrap())
}

fn moments(changes: usize) -> Vec<usize> {
    let last = changes.saturating_sub(MOST / 2);
    let step = last.div_ceil(MOST / 2).max(1);
    (1..=last).step_by(step).chain(last + 1..=changes).collect()
}

fn dies_anywhere(work: &Work) {
    let dir = world();
    let shim = shim(&dir);
    let (right, changes) = whole(&dir, &shim, work, "");
    let (other, _) = whole(&dir, &shim, work, work.other);
    assert!(right != other && changes > 2, "{}", work.command);
    clear(&dir, work);
    let before = content(&dir);
    for at in moments(changes) {
        let moment = format!("`{}`, dead at change {at} of {changes}", work.command);
        clear(&dir, work);
        die(&dir, &shim, work.command, at);
        let grows = ["train", "refresh-ref"].iter().any(|tool| work.command.starts_with(tool)); // file by file, the weights last
        let left = content(&dir);
        assert!(
            grows || left.is_none() || left == before || left.as_ref() == Some(&right),
            "{moment}: neither old nor new"
        );

        let run = tool(&dir, work.command, &format!("{} {}", work.again, work.other)).run();
        match run.code {
            Some(0) => assert!(content(&dir).unwrap() == other, "{moment}: wrong content by other work"),
            // A checkpoint whose weights wait for their place is finished by whoever reads it.
            Some(2) => assert!(grows || content(&dir) == left, "{moment}: refused other work has changed the output"),
            code => panic!("{moment}: other work ends with {code:?}: {}", run.err),
        }
        if run.code == Some(0) {
            clear(&dir, work);
            die(&dir, &shim, work.command, at);
        }
        tool(&dir, work.command, work.again).ok();
        assert!(content(&dir).unwrap() == right, "{moment}: wrong content by the same work");
        let left: Vec<_> = dir.list().into_iter().filter(|name| name.starts_with("out.")).collect();
        assert!(left.is_empty(), "{moment}: {left:?} stays");
    }
}

fn twice_at_once(work: &Work) {
    let dir = world();
    tool(&dir, work.command, "").ok();
    let right = content(&dir).unwrap();
    for wait in [0, 0, 10, 30, 60] {
        clear(&dir, work);
        let start = || {
            let mut command = tool(&dir, work.command, work.again).command;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let first = start();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        let ends = [start(), first].map(|run| run.wait_with_output().unwrap());
        for end in ends.iter().filter(|end| !end.status.success()) {
            let said = String::from_utf8_lossy(&end.stderr);
            assert!(end.status.code() == Some(2) && said.contains("another run"), "{}: {said}", work.command);
        }
        assert!(ends.iter().any(|end| end.status.success()), "{}: both fail", work.command);
        assert!(content(&dir).unwrap() == right, "{}: wrong content", work.command);
    }
}

/// One test per tool, so that they run side by side.
macro_rules! tests {
    ($($tool:ident),*) => { $(
        #[test]
        fn $tool() {
            let name = stringify!($tool).replace('_', "-");
            let works: Vec<_> = WORKS.iter().filter(|work| work.command.starts_with(&format!("{name} "))).collect();
            assert!(!works.is_empty());
            works.iter().for_each(|work| dies_anywhere(work));
            twice_at_once(works[0]);
        }
    )* };
}

tests!(prompts, vote, winrate, report, refresh_ref, score, sample, encode, train);
