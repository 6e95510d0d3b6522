//! Every tool as a Unix program: help, exit codes, pipes, signals, bad files, odd names, nothing left behind.
//!
//! `COMMANDS` has a short run of each tool that writes a file; `check` only prints. `cases` goes deeper into the tools that turn one
//! table into another.

#[path = "unix/flags.rs"]
mod flags;
#[path = "unix/inputs.rs"]
mod inputs;
#[path = "unix/outputs.rs"]
mod outputs;
mod util;

use std::{
    ffi::{OsStr, OsString},
    io::Read,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::Stdio,
};

use arrow::array::RecordBatch;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use util::*;

/// A tool, a table that it reads, a column that it needs, the rest of its command line, and whether it prints its answer.
struct Case {
    tool: &'static str,
    input: RecordBatch,
    column: &'static str,
    rest: &'static [&'static str],
    prints: bool,
}

fn cases(rows: usize) -> Vec<Case> {
    let (zero, one) = (vec![Some(0.25); rows], vec![Some(0.5); rows]);
    let images: Vec<_> = (0..rows).map(|i| vec![i as f32]).collect();
    vec![
        Case {
            tool: "vote",
            input: scores(&vec![None; rows], &[("hps", &zero, &one)]),
            column: "pair_id",
            rest: &["-o", "out"],
            prints: false,
        },
        Case {
            tool: "winrate",
            input: scored("base", &["hps"], &images, |_, x| x),
            column: "prompt_id",
            rest: &["given", "--best-of", "1", "-o", "out"],
            prints: true,
        },
        Case {
            tool: "prompts",
            input: table(vec![("prompt", texts((0..rows).map(|i| format!("prompt {i}"))))]),
            column: "prompt",
            rest: &["-o", "out"],
            prints: false,
        },
    ]
}

impl Case {
    /// A folder with a good table, for the tools that need a second one.
    fn dir(&self) -> Dir {
        let dir = Dir::new();
        dir.put("given", &self.input);
        dir
    }

    /// Runs on `input`, expects exit code 2 and a sentence with all of `parts`, and nothing new in the folder.
    fn refuses(&self, dir: &Dir, tool: Tool, parts: &[&str]) {
        let before = dir.list();
        says(&tool.args(self.rest).fails(2), parts);
        assert_eq!(dir.list(), before, "{} left something behind", self.tool);
    }
}

/// A short run of each tool that writes a file. Words that name a file of `world` are its inputs.
const COMMANDS: &[&str] = &[
    "prompts prompts.parquet -o out",
    #[cfg(feature = "nets")]
    "pairs pairs.parquet -o out",
    "vote scores.parquet -o out",
    "winrate a.parquet b.parquet --best-of 1 -o out",
    #[cfg(feature = "nets")]
    "score pairs.parquet --metrics colourfulness -o out",
    #[cfg(feature = "nets")]
    "encode pairs.parquet --base base --resolution 16 -o out",
    #[cfg(feature = "nets")]
    "train pairs.parquet --labels labels.parquet --base base --resolution 16 --max-train-steps 1 --train-batch-size 4 -o out",
    #[cfg(feature = "nets")]
    "refresh-ref --policy policy --reference base -o out",
    #[cfg(feature = "nets")]
    "sample prompts.parquet --base base -n 1 --steps 1 -o out",
    #[cfg(feature = "nets")]
    "report --scored a.parquet b.parquet -o out",
];

/// `check` prints its answer and writes no file.
const CHECK: &[&str] = &[
    #[cfg(feature = "nets")]
    "check scores.parquet a.parquet",
];

/// The tool and the arguments of each command.
fn all() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    COMMANDS.iter().chain(CHECK).map(|command| split(command))
}

/// The inputs of `COMMANDS` and `CHECK`.
fn world() -> Dir {
    let dir = Dir::new();
    let scores_of = |x: f32| vec![Some(x); 6];
    dir.put("prompts.parquet", &table(vec![("prompt", texts((0..6).map(|i| format!("prompt {i}"))))]));
    dir.put("scores.parquet", &scores(&[None; 6], &[("hps", &scores_of(0.25), &scores_of(0.5))]));
    for (file, shift) in [("a.parquet", 0.5), ("b.parquet", 0.0)] {
        let images: Vec<_> = (0..6).map(|i| vec![i as f32 * 0.3]).collect();
        dir.put(file, &scored(file, &["hps"], &images, |_, x| x.sin() + shift));
    }
    #[cfg(feature = "nets")]
    {
        use util::world::{copy, labels, oracle, pairs, some};
        dir.put("pairs.parquet", &pairs(6));
        dir.put("labels.parquet", &labels(&pairs(6), some));
        copy(&oracle("base"), &dir.path("base"));
        copy(&oracle("policy"), &dir.path("policy"));
    }
    dir
}

/// The tool and the arguments of a command.
fn split(command: &str) -> (&str, Vec<&str>) {
    let mut words = command.split(' ');
    (words.next().unwrap(), words.collect())
}

/// The arguments with another word for `from`.
fn replaced<'a>(args: &[&'a str], from: &str, to: &'a str) -> Vec<&'a str> {
    args.iter().map(|arg| if *arg == from { to } else { arg }).collect()
}

/// The exit code of a run without standard output and standard error.
fn code_when_closed(dir: &Dir, tool: Tool) -> Option<i32> {
    let mut shell = std::process::Command::new("sh");
    let run = tool.command;
    shell.args(["-c", r#"exec "$@" >&- 2>&-"#, "sh"]).arg(run.get_program()).args(run.get_args());
    shell.current_dir(dir.path("")).stdin(Stdio::null()).status().unwrap().code()
}

/// A full disk behind standard output is an error that names it, never a short answer.
fn refuses_a_full_disk(name: &str, mut tool: Tool) {
    let full = std::fs::File::create("/dev/full").unwrap();
    let run = tool.command.stdin(Stdio::null()).stdout(full).output().unwrap();
    let error = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(2), "{name}: {error}");
    says(&error, &[&format!("{name}: cannot write"), "standard output: ", "No space left"]);
}

/// Names, sizes and times of all that lies in a folder.
fn listing(folder: &Path) -> Vec<String> {
    let output = std::process::Command::new("ls").args(["-lAR", "--full-time"]).current_dir(folder).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
}

/// With `-q` a run that succeeds prints nothing; the output is the same.
#[test]
fn quiet_prints_nothing() {
    for (tool, args) in COMMANDS.iter().map(|command| split(command)) {
        let dir = world();
        let run = dir.tool(tool).args(&args).args(["-q"]).ok();
        assert_eq!((run.err.as_str(), run.out.len()), ("", 0), "{tool}");
        assert!(dir.path("out").exists(), "{tool}");
    }
}

/// Blanks, letters of any script, and bytes that are not UTF-8, in the names of inputs and outputs.
#[test]
fn names_of_any_bytes() {
    let plain = world();
    for name in ["größe 熊 '\"".as_bytes(), b"\xe9t\xe9 -o"] {
        let name = OsStr::from_bytes(name);
        let dir = Dir::new();
        let copied =
            std::process::Command::new("cp").arg("-r").arg(plain.path("")).arg(dir.path("").join(name)).status();
        assert!(copied.unwrap().success());
        for (tool, args) in COMMANDS.iter().map(|command| split(command)) {
            let inside = |arg: &&str| -> OsString {
                if *arg == "out" || plain.path(arg).exists() { Path::new(name).join(arg).into() } else { arg.into() }
            };
            dir.tool(tool).args(args.iter().map(inside)).ok();
            let out = dir.path("").join(name).join("out");
            let removed = if out.is_dir() { std::fs::remove_dir_all(&out) } else { std::fs::remove_file(&out) };
            removed.unwrap_or_else(|error| panic!("{tool} did not write {}: {error}", out.display()));
        }
        assert_eq!(std::fs::read_dir(dir.path("")).unwrap().count(), 1, "something was written elsewhere");
    }
}

/// A program that was started without standard output or standard error still does its work.
#[test]
fn closed_standard_output_and_error() {
    for (tool, args) in COMMANDS.iter().map(|command| split(command)) {
        let dir = world();
        assert_eq!(code_when_closed(&dir, dir.tool(tool).args(&args)), Some(0), "{tool}");
        assert!(dir.path("out").exists(), "{tool}");
    }
}

/// The answer of `check` goes to standard output; with -q it is the exit status alone.
#[test]
fn check_prints_its_answer() {
    let dir = world();
    let before = listing(&dir.path(""));
    for (tool, args) in CHECK.iter().map(|command| split(command)) {
        let check = || dir.tool(tool).args(&args);
        let run = check().ok();
        says(run.text(), &args);
        assert_eq!(run.err, "");
        let quiet = check().arg("-q").ok();
        assert_eq!((quiet.text(), quiet.err.as_str()), ("", ""));
        assert_eq!(code_when_closed(&dir, check()), Some(0));
        refuses_a_full_disk(tool, check());
        says(&check().arg("absent").exits(2).err, &["absent"]);
        dir.write("cut.parquet", &dir.bytes("a.parquet")[..100]);
        let no = check().args(["-q", "cut.parquet"]).exits(1);
        assert_eq!((no.text(), no.err.as_str()), ("", ""));
        assert_eq!(code_when_closed(&dir, check().arg("cut.parquet")), Some(1));
        std::fs::remove_file(dir.path("cut.parquet")).unwrap();
    }
    assert_eq!(listing(&dir.path("")).len(), before.len(), "something was written");
}

/// Long work ends with 143 after SIGTERM and 130 after SIGINT, and the same command finishes it.
#[test]
#[cfg(feature = "nets")]
fn signals_save_and_leave() {
    use util::world::{labels, oracle, pairs, some, wait_for};
    let dir = world();
    dir.put("pairs.parquet", &pairs(400));
    dir.put("labels.parquet", &labels(&pairs(400), some));
    let model = oracle("base").display().to_string();
    let scorers = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/mini/scorers").display().to_string();
    dir.put("prompts.parquet", &table(vec![("prompt", texts((0..400).map(|i| format!("prompt {i}"))))]));
    let part = "000000.parquet";
    for (command, begun) in [
        (format!("score pairs.parquet --models {scorers} --metrics hps,clip -o OUT"), format!("OUT.partial/{part}")),
        (format!("sample prompts.parquet --base {model} -n 4 --steps 8 -o OUT"), format!("OUT.partial/{part}")),
        (
            format!("encode pairs.parquet --base {model} --resolution 64 -o OUT"),
            "OUT.partial/000000.pairs.parquet".into(),
        ),
        (
            format!(
                "train pairs.parquet --labels labels.parquet --base {model} --resolution 16 --max-train-steps 60 \
                 --train-batch-size 4 --checkpointing-steps 10 --resume-from-checkpoint latest -o OUT"
            ),
            "OUT/log.jsonl".into(),
        ),
    ] {
        let (tool, _) = split(&command);
        for (signal, code) in [("TERM", 143), ("INT", 130)] {
            let out = format!("{tool}-{signal}");
            let (command, begun) = (command.replace("OUT", &out), begun.replace("OUT", &out));
            let (_, args) = split(&command);
            let child = util::world::spawn(dir.tool(tool).args(&args));
            wait_for(&begun, || dir.path(&begun).metadata().is_ok_and(|file| file.len() > 0));
            let pid = child.id().to_string();
            assert!(std::process::Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
            let mut child = child;
            assert_eq!(child.wait().unwrap().code(), Some(code), "{tool} after SIG{signal}");
            dir.tool(tool).args(&args).ok();
            assert!(dir.path(&out).exists() && !dir.path(&format!("{out}.partial")).exists(), "{tool}");
        }
    }
}
