//! What every tool does as a citizen of a shell: help, exit codes, pipes, bad files, nothing left behind.

mod util;

use std::{io::Read, process::Stdio};

use arrow::array::RecordBatch;
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

#[test]
fn help_and_version() {
    for case in cases(1) {
        let help = Tool::new(case.tool).args(["--help"]).ok();
        says(help.text(), &["Usage: ", "Examples:", "Exit status:", "--output <PATH>", "-o"]);
        assert!(help.text().lines().all(|line| line.chars().count() <= 100), "{} --help is too wide", case.tool);
        assert!(Tool::new(case.tool).args(["-h"]).ok().text().len() < help.text().len());
        let version = Tool::new(case.tool).args(["--version"]).ok();
        assert_eq!(version.text(), format!("{} {}\n", case.tool, env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn exit_code_2_for_a_wrong_command_line() {
    for case in cases(1) {
        for args in [&[][..], &["given", "--no-such-flag"], &["given", "-o"], &["given", "--seed", "x", "-o", "out"]] {
            let run = case.dir().tool(case.tool).args(args).exits(2);
            assert!(run.err.contains("--help") && run.out.is_empty(), "{} {args:?}: {}", case.tool, run.err);
        }
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
        case.refuses(&dir, dir.tool(case.tool).args(["folder"]), &["parts of different tables", "stale"]);
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
fn quiet_says_nothing() {
    for case in cases(3) {
        let run = case.dir().tool(case.tool).args(["given"]).args(case.rest).args(["-q"]).ok();
        assert_eq!((run.err.as_str(), run.out.len()), ("", 0), "{}", case.tool);
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
