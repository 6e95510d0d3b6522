//! Outputs: where they may be written, and what stays of them.

use super::*;

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
            refuses_a_full_disk(tool, dir.tool(tool).args(&args));
        }
        assert_eq!(listing(&dir.path("")), before, "{tool} wrote elsewhere");
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
