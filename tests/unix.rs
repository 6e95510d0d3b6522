//! Every tool as a Unix program: help, exit codes, pipes, signals, bad files, odd names, nothing left behind.
//!
//! `commands` is a short run of each of the ten tools. `cases` goes deeper into the tools that turn one table into another.

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

/// A short run of each tool. Words that name a file of `world` are its inputs.
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

/// The inputs of `COMMANDS`.
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

/// The tool and the arguments of one of `COMMANDS`.
fn split(command: &str) -> (&str, Vec<&str>) {
    let mut words = command.split(' ');
    (words.next().unwrap(), words.collect())
}

/// The arguments with another word for `from`.
fn replaced<'a>(args: &[&'a str], from: &str, to: &'a str) -> Vec<&'a str> {
    args.iter().map(|arg| if *arg == from { to } else { arg }).collect()
}

/// Names, sizes and times of all that lies in a folder.
fn listing(folder: &Path) -> Vec<String> {
    let output = std::process::Command::new("ls").args(["-lAR", "--full-time"]).current_dir(folder).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
}

#[test]
fn help_and_version() {
    for (tool, _) in COMMANDS.iter().map(|command| split(command)) {
        let help = Tool::new(tool).args(["--help"]).ok();
        says(help.text(), &["Usage: ", "Examples:", "Exit status:", "--output <PATH>", "-o", "--quiet", "--threads"]);
        assert!(help.text().lines().all(|line| line.chars().count() <= 100), "{tool} --help is too wide");
        assert!(Tool::new(tool).args(["-h"]).ok().text().len() < help.text().len());
        let version = Tool::new(tool).args(["--version"]).ok();
        assert_eq!(version.text(), format!("{tool} {}\n", env!("CARGO_PKG_VERSION")));
    }
}

/// The examples of --help can be pasted from a terminal of 80 columns: none of their lines is wrapped.
#[test]
fn examples_fit_80_columns() {
    for (tool, _) in COMMANDS.iter().map(|command| split(command)) {
        let mut help = Tool::new(tool).args(["--help"]);
        help.command.env("COLUMNS", "80");
        let run = help.ok();
        let lines = run.text().lines().skip_while(|line| *line != "Examples:").skip(1);
        let mut command = String::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            assert!(line.starts_with("  "), "{tool}: {line}");
            command += line;
            if !line.ends_with('\\') {
                assert!(std::mem::take(&mut command).contains(&format!("{tool} ")), "{tool}: {line}");
            }
        }
        assert!(command.is_empty(), "{tool}");
    }
}

/// Flags of other programs are answered by what to do instead, all that a line has.
#[test]
fn flags_of_other_programs_are_answered() {
    for (tool, flags, parts) in [
        ("vote", "--device cpu", &["--device is not a flag of `vote`", "no network"][..]),
        ("winrate", "--batch_size=4", &["--batch_size is not a flag of `winrate`", "--batch"]),
        ("vote", "--tires first", &["--tires is not a flag of `vote`; a similar one is --ties", "`vote --help`"]),
        ("prompts", "--nothing-like-it 1", &["--nothing-like-it is not a flag of `prompts`; `prompts --help`"]),
        #[cfg(feature = "nets")]
        (
            "train",
            "--network_dim 4 --x y --push_to_hub",
            &["--network_dim", "--lora-rank", "--push_to_hub", "uploaded"],
        ),
        #[cfg(feature = "nets")]
        ("train", "--report_to wandb", &["--report-to wandb", "`tensorboard`"]),
        #[cfg(feature = "nets")]
        ("train", "--dump-gradients --revision --local_rank 0", &["--local_rank", "mpirun"]),
        #[cfg(feature = "nets")]
        ("sample", "--num_inference_steps 3", &["--num_inference_steps is not a flag of `sample`", "--steps"]),
    ] {
        let run = Tool::new(tool).args(flags.split(' ')).exits(2);
        says(&run.err, parts);
        assert!(
            run.err.lines().all(|line| line.starts_with(&format!("{tool}: "))) && !run.err.contains("tip:"),
            "{}",
            run.err
        );
        assert!(!run.err.contains("--revision is not"), "the value of a flag: {}", run.err);
    }
}

/// `COMMANDS` covers every program of Cargo.toml that writes a file.
#[test]
#[cfg(feature = "nets")]
fn every_tool_is_here() {
    let manifest = include_str!("../Cargo.toml");
    let mut tools: Vec<_> =
        manifest.split("[[bin]]\nname = \"").skip(1).map(|s| s.split('"').next().unwrap()).collect();
    let mut here: Vec<_> = COMMANDS.iter().map(|command| split(command).0).collect();
    tools.retain(|tool| !["check", "rehearse"].contains(tool)); // one only prints, the other is make's
    tools.sort();
    here.sort();
    assert_eq!(tools, here);
}

#[test]
fn exit_code_2_for_a_wrong_command_line() {
    let dir = world();
    let before = listing(&dir.path(""));
    for (tool, args) in COMMANDS.iter().map(|command| split(command)) {
        for (more, named) in
            [(&["--no-such-flag"][..], "--no-such-flag"), (&["-o"], "--output"), (&["--threads", "x"], "--threads")]
        {
            let run = dir.tool(tool).args(&args).args(more).exits(2);
            says(&run.err, &[named, "--help"]);
            assert!(run.out.is_empty(), "{tool} {more:?}");
        }
        dir.tool(tool).exits(2);
    }
    assert_eq!(listing(&dir.path("")), before);
}

#[test]
fn a_missing_input_is_named() {
    let dir = world();
    let before = listing(&dir.path(""));
    for (tool, args) in COMMANDS.iter().map(|command| split(command)) {
        let inputs: Vec<_> = args.iter().filter(|arg| dir.path(arg).exists()).collect();
        assert!(!inputs.is_empty());
        for input in inputs {
            let error = dir.tool(tool).args(replaced(&args, input, "absent")).fails(2);
            says(&error, &["absent"]);
        }
        assert_eq!(listing(&dir.path("")), before, "{tool} left something behind");
    }
}

#[test]
fn every_tool_refuses_to_write_over_its_input() {
    let dir = world();
    for (tool, args) in COMMANDS.iter().map(|command| split(command)) {
        for input in args.iter().filter(|arg| dir.path(arg).is_file()) {
            let before = listing(&dir.path(""));
            let error = dir.tool(tool).args(replaced(&args, "out", input)).fails(2);
            says(&error, &[input]);
            assert_eq!(listing(&dir.path("")), before, "{tool} {input}");
        }
    }
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

#[test]
fn a_folder_that_cannot_be_written() {
    let dir = world();
    dir.write("file", "");
    let before = listing(&dir.path(""));
    // Below a file no folder can be made. /proc takes no new file, even from root, who may write into any other folder.
    for (tool, args) in COMMANDS.iter().map(|command| split(command)) {
        for out in ["file/out", "/proc/out"] {
            let error = dir.tool(tool).args(replaced(&args, "out", out)).fails(2);
            says(&error, &[if out.starts_with('/') { "/proc" } else { "file" }]);
        }
        assert_eq!(listing(&dir.path("")), before, "{tool} left something behind");
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
        let run = dir.tool(tool).args(&args).command;
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", r#"exec "$@" >&- 2>&-"#, "sh"]).arg(run.get_program()).args(run.get_args());
        let status = shell.current_dir(dir.path("")).stdin(Stdio::null()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{tool}");
        assert!(dir.path("out").exists(), "{tool}");
    }
}

/// `-o -` writes to standard output what `-o PATH` writes to a file; tools that write folders refuse it.
#[test]
fn standard_output_where_it_makes_sense() {
    let dir = world();
    for (tool, args) in COMMANDS.iter().map(|command| split(command)) {
        let args = replaced(&args, "out", "-");
        let before = listing(&dir.path(""));
        if ["encode", "train", "refresh-ref"].contains(&tool) {
            says(&dir.tool(tool).args(&args).fails(2), &["folder"]);
        } else {
            let run = dir.tool(tool).args(&args).ok();
            assert!(!run.out.is_empty(), "{tool}");
            // A full disk is an error, never a short table.
            let mut full = dir.tool(tool).args(&args);
            let full = full.command.stdin(Stdio::null()).stdout(std::fs::File::create("/dev/full").unwrap()).output();
            let (code, error) = full.map(|run| (run.status.code(), String::from_utf8(run.stderr).unwrap())).unwrap();
            assert_eq!(code, Some(2), "{tool}: {error}");
            says(&error, &["No space left"]);
        }
        assert_eq!(listing(&dir.path("")), before, "{tool} wrote elsewhere");
    }
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

/// Other programs open a table by the ending of its name, and ours are Parquet.
#[test]
fn a_table_is_not_called_something_else() {
    let dir = Dir::new();
    let scores_of = |x: f32| vec![Some(x); 3];
    dir.put("scores.parquet", &scores(&[None; 3], &[("hps", &scores_of(0.25), &scores_of(0.5))]));
    dir.write("prompts.txt", "a fox\n");
    let mut commands = vec!["vote scores.parquet", "prompts prompts.txt"];
    #[cfg(feature = "nets")]
    {
        use util::world::{copy, oracle, pairs};
        dir.put("pairs.parquet", &pairs(3));
        copy(&oracle("base"), &dir.path("base"));
        commands.extend([
            "score pairs.parquet --metrics colourfulness", "sample prompts.txt --base base --steps 1",
            "pairs pairs.parquet",
        ]);
    }
    let before = dir.list();
    for command in commands {
        let (tool, args) = split(command);
        for ending in ["feather", "arrow", "csv", "FEATHER"] {
            let error = dir.tool(tool).args(&args).args(["-o", &format!("x.{ending}")]).fails(2);
            says(&error, &["Parquet", "x.parquet", &format!("x.{ending}")]);
        }
        assert_eq!(dir.list(), before, "{tool}");
        dir.tool(tool).args(&args).args(["-o", "x.parquet"]).ok();
        std::fs::remove_file(dir.path("x.parquet")).unwrap();
    }
}

#[test]
fn underscores_are_dashes() {
    for (tool, flag) in [("winrate", "--best_of=1"), ("vote", "--metrics=hps"), ("prompts", "--max=1")] {
        let case = cases(3).into_iter().find(|c| c.tool == tool).unwrap();
        case.dir()
            .tool(tool)
            .args(["given"])
            .args(case.rest.iter().filter(|a| !a.contains("best") && **a != "1"))
            .args([flag])
            .ok();
    }
}

#[test]
fn underscores_stay_in_values_and_operands() {
    let case = cases(3).remove(0);
    let dir = case.dir();
    for name in ["--my_scores.parquet", "--best_of"] {
        dir.put(name, &case.input);
        dir.tool("vote").args(["-o", "out", "--", name]).ok();
    }
    // The rule is at fault, not its spelling.
    let error = dir.tool("vote").args(["given", "-o", "out", "--rule", "single:my_metric"]).fails(2);
    says(&error, &["'my_metric'"]);
}

#[test]
fn the_last_of_two_equal_flags_holds() {
    let dir = Dir::new();
    dir.put("given", &table(vec![("prompt", texts((0..4).map(|i| format!("prompt {i}"))))]));
    let args = ["given", "--max", "1", "--threads", "2", "-o", "first", "--max=3", "--threads", "1", "-o", "last"];
    dir.tool("prompts").args(args).ok();
    assert_eq!(dir.get("last").num_rows(), 3);
    assert!(!dir.path("first").exists());
}

#[test]
fn a_missing_or_foreign_file() {
    for case in cases(1) {
        let dir = case.dir();
        case.refuses(&dir, dir.tool(case.tool).args(["absent"]), &["absent", "No such file"]);
        dir.write("text", b"\x00\x01\xfe not a table");
        case.refuses(&dir, dir.tool(case.tool).args(["text"]), &["text", "table"]);
        dir.write("nothing", b"");
        case.refuses(&dir, dir.tool(case.tool).args(["nothing"]), &["nothing is empty"]);
        std::fs::create_dir(dir.path("folder")).unwrap();
        case.refuses(&dir, dir.tool(case.tool).args(["folder"]), &["folder", "part-00000"]);
        dir.put("folder/part-00001-of-00002.parquet", &case.input);
        case.refuses(&dir, dir.tool(case.tool).args(["folder"]), &["part-00000-of-00002.parquet is missing", "0/2"]);
        dir.put("folder/part-00001-of-00003.parquet", &case.input);
        case.refuses(&dir, dir.tool(case.tool).args(["folder"]), &["parts of different tables", "remove the old ones"]);
        std::fs::remove_file(dir.path("folder/part-00001-of-00002.parquet")).unwrap();
        let missing = ["2 of 3 parts are missing", "part-00000-of-00003.parquet first", "I = 0,2"];
        case.refuses(&dir, dir.tool(case.tool).args(["folder"]), &missing);
        // An object, without asking anybody for it.
        #[cfg(not(feature = "cloud"))]
        for url in ["s3://bucket/table.parquet", "http://127.0.0.1:1/parts/"] {
            case.refuses(&dir, dir.tool(case.tool).args([url]), &[url, "--features cloud"]);
        }
    }
}

#[test]
fn a_parquet_file_that_is_cut_off_or_damaged() {
    for case in cases(5000) {
        let dir = case.dir();
        let whole = dir.bytes("given");
        for keep in [5, whole.len() / 2, whole.len() - 1] {
            dir.write("cut", &whole[..keep]);
            case.refuses(&dir, dir.tool(case.tool).args(["cut"]), &["cut is not a whole table"]);
        }
        let mut hole = whole.clone();
        hole[4..whole.len() / 2].fill(0);
        dir.write("hole", &hole);
        case.refuses(&dir, dir.tool(case.tool).args(["hole"]), &["hole is not a whole table"]);
    }
}

#[test]
fn a_stream_whose_producer_died() {
    for case in cases(5000) {
        let dir = case.dir();
        let whole = stream(&case.input);
        dir.tool(case.tool).args(["-"]).args(case.rest).stdin(whole.clone()).ok();
        std::fs::remove_file(dir.path("out")).unwrap();
        // A named pipe gives its bytes once.
        dir.tool(case.tool).args(["/dev/stdin"]).args(case.rest).stdin(whole.clone()).ok();
        std::fs::remove_file(dir.path("out")).unwrap();
        // Without its end mark, in the middle of a batch, in the middle of the schema.
        for keep in [whole.len() - 8, whole.len() / 2, 20] {
            let tool = dir.tool(case.tool).args(["-"]).stdin(&whole[..keep]);
            case.refuses(&dir, tool, &["standard input", "stopped"]);
        }
        dir.write("file", &whole[..whole.len() - 8]);
        case.refuses(&dir, dir.tool(case.tool).args(["file"]), &["file", "stopped"]);
        case.refuses(&dir, dir.tool(case.tool).args(["-"]).stdin(""), &["standard input is empty"]);
        case.refuses(&dir, dir.tool(case.tool).args(["-", "-"]).stdin(whole), &["only once"]);
    }
}

/// As pyarrow's and pandas' `to_feather` write it.
#[test]
fn compressed_arrow_files_and_streams() {
    for case in cases(5000) {
        let dir = case.dir();
        let answer = |input: &str, bytes: &[u8]| {
            dir.write("table", bytes);
            let tool = dir.tool(case.tool).args([input]).args(case.rest);
            let printed = if input == "-" { tool.stdin(bytes) } else { tool }.ok().out;
            let columns = (!case.prints).then(|| dir.get("out").columns().to_vec());
            std::fs::remove_file(dir.path("out")).unwrap();
            (printed, columns)
        };
        let (of_file, of_stream) = (answer("table", &dir.bytes("given")), answer("-", &stream(&case.input)));
        let frames =
            [(CompressionType::LZ4_FRAME, [0x04, 0x22, 0x4d, 0x18]), (CompressionType::ZSTD, [0x28, 0xb5, 0x2f, 0xfd])];
        for (compression, mark) in frames {
            let options = || IpcWriteOptions::default().try_with_compression(Some(compression)).unwrap();
            let mut file = FileWriter::try_new_with_options(vec![], &case.input.schema(), options()).unwrap();
            file.write(&case.input).unwrap();
            file.finish().unwrap();
            let file = file.into_inner().unwrap();
            assert!(answer("table", &file) == of_file, "{} reads a file", case.tool);
            let mut stream = StreamWriter::try_new_with_options(vec![], &case.input.schema(), options()).unwrap();
            stream.write(&case.input).unwrap();
            stream.finish().unwrap();
            let stream = stream.into_inner().unwrap();
            assert!(answer("-", &stream) == of_stream, "{} reads a stream", case.tool);
            std::fs::remove_file(dir.path("table")).unwrap();

            // A length before a column that promises 64 GiB.
            for (name, whole) in [("stream", stream), ("file", file)] {
                let at = whole.windows(4).position(|bytes| bytes == mark).unwrap();
                let mut bomb = whole.clone();
                bomb[at - 8..at].copy_from_slice(&(64u64 << 30).to_le_bytes());
                dir.write(name, bomb);
                case.refuses(
                    &dir,
                    dir.tool(case.tool).args([name]),
                    &["its compressed columns promise 6871", "more than any table of its size"],
                );
            }
        }
    }
}

/// `cat a b | tool -`: the second table's rows were passed over.
#[test]
fn two_streams_in_one_pipe() {
    for case in cases(3) {
        let dir = case.dir();
        let one = stream(&case.input);
        case.refuses(&dir, dir.tool(case.tool).args(["-"]).stdin([&one[..], &one].concat()), &["follow the end mark"]);
    }
}

#[test]
fn a_missing_column_is_named_with_what_was_found() {
    for case in cases(3) {
        let dir = case.dir();
        // A table of one foreign column is still a table.
        dir.put("less", &table(vec![("foreign", texts(["a", "b", "c"]))]));
        case.refuses(&dir, dir.tool(case.tool).args(["less"]), &["less"]);
        if case.input.num_columns() > 1 {
            dir.put("less", &without(&case.input, case.column));
            let column = format!("column '{}' is missing (found: ", case.column);
            case.refuses(&dir, dir.tool(case.tool).args(["less"]), &["less", &column]);
        }
    }
}

#[test]
fn a_table_without_rows() {
    for case in cases(3) {
        let dir = case.dir();
        let empty = case.input.slice(0, 0);
        dir.put("empty", &empty);
        case.refuses(&dir, dir.tool(case.tool).args(["empty"]), &["empty has no"]);
        case.refuses(&dir, dir.tool(case.tool).args(["-"]).stdin(stream(&empty)), &["standard input has no"]);
    }
}

/// An output is first written as NAME.partial. What the user has under that name is not lost.
#[test]
fn the_name_of_the_unfinished_output_is_not_an_input_and_not_a_link() {
    for case in cases(3) {
        let dir = case.dir();
        dir.put("out.partial", &case.input);
        let before = dir.bytes("out.partial");
        case.refuses(&dir, dir.tool(case.tool).args(["out.partial"]), &["out.partial is an input", "another output"]);
        assert_eq!(dir.bytes("out.partial"), before);
        std::fs::rename(dir.path("out.partial"), dir.path("mine")).unwrap();
        std::os::unix::fs::symlink("mine", dir.path("out.partial")).unwrap();
        case.refuses(&dir, dir.tool(case.tool).args(["given"]), &["out.partial", "symbolic link"]);
        assert_eq!(dir.bytes("mine"), before);
    }
}

/// A table in an object store is read. Written to such a name, it would lie in a folder named `s3:` here.
#[test]
fn an_output_in_an_object_store_is_refused() {
    let dir = Dir::new();
    for tool in ["prompts", "pairs", "score", "vote", "encode", "train", "refresh-ref", "sample", "winrate", "report"] {
        for url in ["s3://bucket/x", "gs://bucket/x", "https://example.com/x"] {
            says(&dir.tool(tool).args(["-o", url]).fails(2), &[url, "object stores are only read"]);
        }
    }
    assert!(dir.list().is_empty());
}

#[test]
fn an_output_that_cannot_be_written() {
    for case in cases(3) {
        let dir = case.dir();
        dir.write("file", "");
        std::fs::create_dir(dir.path("folder")).unwrap();
        for (out, why) in
            [("file/out", "cannot create the folder file"), ("folder", "cannot write folder: it is a folder")]
        {
            let rest: Vec<_> = case.rest.iter().map(|a| if *a == "out" { out } else { a }).collect();
            let error = dir.tool(case.tool).args(["given"]).args(rest).fails(2);
            says(&error, &[why]);
        }
        assert_eq!(dir.list(), ["file", "folder", "given"]);
        assert_eq!(dir.bytes("file"), b"");
        if !case.prints {
            says(&dir.tool(case.tool).args(["given"]).fails(2), &["-o PATH"]);
        }
    }
}

#[test]
fn a_failed_run_keeps_the_old_output() {
    for case in cases(3000) {
        let dir = case.dir();
        dir.tool(case.tool).args(["given"]).args(case.rest).ok();
        let before = dir.bytes("out");
        let whole = stream(&case.input);
        dir.tool(case.tool).args(["-"]).stdin(&whole[..whole.len() - 8]).args(case.rest).fails(2);
        assert_eq!(dir.bytes("out"), before);
        assert_eq!(dir.list(), ["given", "out"]);
    }
}

#[test]
fn an_output_that_is_an_input_is_refused() {
    for case in cases(3) {
        let dir = case.dir();
        dir.put("first", &case.input);
        std::fs::create_dir(dir.path("folder")).unwrap();
        dir.put("folder/part-00000-of-00001.parquet", &case.input);
        std::os::unix::fs::symlink("first", dir.path("link")).unwrap();
        let before = dir.bytes("first");
        let rest = |out: &'static str| case.rest.iter().map(move |a| if *a == "out" { out } else { a });
        let part = "folder/part-00000-of-00001.parquet";
        for (input, out) in [("first", "first"), ("first", "link"), ("./link", "first"), ("folder", part)] {
            let error = dir.tool(case.tool).args([input]).args(rest(out)).fails(2);
            says(&error, &[&format!("{out} is also an input; name another output")]);
        }
        let piped = dir.tool(case.tool).args(["-"]).args(rest("first")).stdin_file(&dir.path("first"));
        says(&piped.fails(2), &["first is also an input"]);
        assert_eq!(dir.list(), ["first", "folder", "given", "link"]);
        assert!(dir.bytes("first") == before && dir.bytes(part) == before);
    }
    // Other files that are read, and other files that are written.
    let dir = cases(3)[0].dir();
    dir.write("scales", r#"{"hps": {"sd": 0.1, "min": 0, "max": 1}}"#);
    let scaled = dir.tool("vote").args(["given", "--rule", "zsum", "--scales", "scales", "-o", "scales"]);
    says(&scaled.fails(2), &["scales is also an input"]);
    dir.write("log.jsonl", "");
    #[cfg(feature = "nets")]
    for written in ["-o", "--sheet"] {
        let report = dir.tool("report").args(["--logs", "log.jsonl", "--images", "given", written, "log.jsonl"]);
        says(&report.fails(2), &["log.jsonl is also an input"]);
    }
}

/// Into a named pipe goes what would go to standard output, and it stays a pipe.
#[test]
fn a_named_pipe_is_written_into() {
    for case in cases(3000) {
        let dir = case.dir();
        let rest = |out: &'static str| case.rest.iter().map(move |a| if *a == "out" { out } else { a });
        let stdout = dir.tool(case.tool).args(["given"]).args(rest("-")).ok().out;
        let reader = dir.fifo("fifo");
        dir.tool(case.tool).args(["given"]).args(rest("fifo")).ok();
        assert!(reader.join().unwrap() == stdout, "{}", case.tool);
        assert_eq!(dir.list(), ["fifo", "given"]);
        let named = dir.tool(case.tool).args(["given"]).args(rest("/dev/stdout")).ok().out;
        assert!(named == stdout, "{}", case.tool);
    }
}

#[test]
fn a_link_stays_a_link() {
    for case in cases(3) {
        let dir = case.dir();
        std::fs::create_dir(dir.path("folder")).unwrap();
        dir.write("folder/old", "old");
        let rest = |out: &'static str| case.rest.iter().map(move |a| if *a == "out" { out } else { a });
        dir.tool(case.tool).args(["given"]).args(rest("out")).ok();
        for file in ["folder/old", "folder/new"] {
            std::os::unix::fs::symlink(file, dir.path("link")).unwrap();
            dir.tool(case.tool).args(["given"]).args(rest("link")).ok();
            assert!(dir.path("link").is_symlink() && dir.bytes(file) == dir.bytes("out"));
            std::fs::remove_file(dir.path("link")).unwrap();
        }
        std::os::unix::fs::symlink("link", dir.path("link")).unwrap();
        says(&dir.tool(case.tool).args(["given"]).args(rest("link")).fails(2), &["cannot write link", "circle"]);
        assert_eq!(dir.list(), ["folder", "given", "link", "out"]);
        assert_eq!(std::fs::read_dir(dir.path("folder")).unwrap().count(), 2);
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    for case in cases(50_000) {
        let dir = case.dir();
        let rest = case.rest.iter().map(|a| if *a == "out" { "-" } else { a });
        let mut tool = dir.tool(case.tool).args(["given", "-q"]).args(rest);
        let mut child = tool.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdout.take().unwrap();
        if !case.prints {
            pipe.read_exact(&mut [0; 100]).unwrap();
        }
        drop(pipe);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}: {}", case.tool, String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{}", case.tool);
    }
}

/// A reader of our standard output that leaves has what it wanted. A named pipe is an output like a file: half of it is an error.
#[test]
fn a_broken_pipe_that_is_not_standard_output_is_an_error() {
    for case in cases(50_000).into_iter().filter(|case| !case.prints) {
        let dir = case.dir();
        let path = dir.path("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let reader = std::thread::spawn(move || std::fs::File::open(path).unwrap().read_exact(&mut [0; 100]).unwrap());
        let error = dir.tool(case.tool).args(["given", "-q", "-o", "fifo"]).fails(2);
        reader.join().unwrap();
        says(&error, &["Broken pipe"]);
    }
}
