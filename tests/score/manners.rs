//! `score` as a program of Unix: deaths, signals, pipes, outputs and limits.

use std::{io::Read, process::Stdio};

use super::*;

#[test]
fn a_killed_run_goes_on_and_gives_the_same_bytes() {
    let dir = world(200);
    score(&dir, "pairs.parquet -o whole.parquet").ok();
    let mut child = score(&dir, "pairs.parquet -o s.parquet -q").command.spawn().unwrap();
    while !dir.path("s.parquet.partial/000000.crc32c").exists() {
        // One part is finished; or all was done before we looked.
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    if dir.path("s.parquet.partial").exists() {
        let error = score(&dir, "pairs.parquet -o s.parquet --hps-resize legacy").fails(2);
        says(&error, &["s.parquet.partial holds the unfinished parts of other work"]);
        let summary = score(&dir, "pairs.parquet -o s.parquet --json").ok().json();
        assert_eq!((&summary["rows"], summary["metrics"]["hps"]["n"].as_u64()), (&200.into(), Some(400)));
        assert!(summary["rows_kept"].as_u64() >= Some(64) && summary["images_embedded"].as_u64() < Some(300));
    }
    assert!(dir.bytes("s.parquet") == dir.bytes("whole.parquet"));
    assert_eq!(dir.list(), ["pairs.parquet", "s.parquet", "whole.parquet"]);
}

#[test]
fn a_signal_keeps_what_is_finished() {
    let dir = world(200);
    let mut child = score(&dir, "pairs.parquet -o s.parquet -q").command.stderr(Stdio::piped()).spawn().unwrap();
    while !dir.path("s.parquet.partial/000000.crc32c").exists() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143), "{error}");
    says(&error, &["score: stopped by signal 15"]);
    let part = dir.path("s.parquet.partial/000000.parquet");
    assert!(part.exists() && !dir.path("s.parquet").exists());
    // A part that a power cut left empty, cut off or full of zeros is made again.
    score(&dir, "pairs.parquet -o whole.parquet").ok();
    let kept = dir.path("kept");
    std::fs::rename(dir.path("s.parquet.partial"), &kept).unwrap();
    let bytes = std::fs::read(kept.join("000000.parquet")).unwrap();
    let mut hole = bytes.clone();
    hole[4..bytes.len() / 2].fill(0);
    for torn in [&bytes[..0], &bytes[..bytes.len() / 2], &vec![0; bytes.len()], &hole] {
        std::fs::create_dir(dir.path("s.parquet.partial")).unwrap();
        for file in std::fs::read_dir(&kept).unwrap().map(|e| e.unwrap().path()) {
            std::fs::copy(&file, dir.path("s.parquet.partial").join(file.file_name().unwrap())).unwrap();
        }
        std::fs::write(&part, torn).unwrap();
        let summary = score(&dir, "pairs.parquet -o s.parquet --json").ok().json();
        assert_eq!(summary["rows_kept"], 0);
        assert!(dir.bytes("s.parquet") == dir.bytes("whole.parquet"));
    }
    // Parts whose plan is gone may be those of other work.
    std::fs::remove_file(kept.join("plan.json")).unwrap();
    std::fs::rename(&kept, dir.path("s.parquet.partial")).unwrap();
    says(&score(&dir, "pairs.parquet -o s.parquet").fails(2), &["s.parquet.partial", "other work"]);
    assert!(part.exists());
}

#[test]
fn pipes() {
    let dir = world(70);
    let scores = score(&dir, "pairs.parquet -o - -q").ok().out;
    dir.tool("vote").args(["-", "-o", "labels.parquet"]).stdin(scores.clone()).ok();
    assert_eq!(dir.get("labels.parquet").num_rows(), 70);
    // A stream that is cut off is no table.
    dir.tool("vote").args(["-", "-o", "cut.parquet"]).stdin(&scores[..scores.len() - 8]).fails(2);
    // A reader that leaves early got what it wanted.
    let mut tool = score(&dir, "pairs.parquet -o -");
    let mut child = tool.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 100]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
    // A summary never goes into the table.
    let run = score(&dir, "pairs.parquet -o - --json").ok();
    assert_eq!(run.table().num_rows(), 70);
    assert!(serde_json::from_str::<Value>(run.err.lines().next().unwrap()).unwrap()["rows"] == 70);
}

#[test]
fn an_output_that_is_an_input_is_refused() {
    let dir = world(3);
    let before = dir.bytes("pairs.parquet");
    let why = ["is also an input; name another output"];
    says(&score(&dir, "pairs.parquet -o pairs.parquet").fails(2), &why);
    says(&score(&dir, "- -o pairs.parquet").stdin_file(&dir.path("pairs.parquet")).fails(2), &why);
    std::fs::create_dir(dir.path("parts")).unwrap();
    dir.put("parts/part-00000-of-00001.parquet", &pairs(3));
    for out in ["parts --shard 0/1", "parts --shard 1/2", "parts/part-00000-of-00001.parquet"] {
        says(&score(&dir, &format!("parts -o {out}")).fails(2), &why);
    }
    assert!(dir.bytes("pairs.parquet") == before);
    assert_eq!(dir.list(), ["pairs.parquet", "parts"]);
    assert_eq!(std::fs::read_dir(dir.path("parts")).unwrap().count(), 1);
}

#[test]
fn a_named_pipe_is_written_into() {
    let dir = world(70);
    score(&dir, "pairs.parquet -o s.parquet").ok();
    let reader = dir.fifo("fifo");
    score(&dir, "pairs.parquet -o fifo").ok();
    let piped = read_stream(&reader.join().unwrap());
    assert_eq!(bits(&piped), bits(&dir.get("s.parquet")));
    assert_eq!(dir.list(), ["fifo", "pairs.parquet", "s.parquet"]);
    // A link stays one; what it points to is replaced, or made.
    for target in ["s.parquet", "new.parquet"] {
        std::os::unix::fs::symlink(target, dir.path("link")).unwrap();
        score(&dir, "pairs.parquet -o link").ok();
        assert!(dir.path("link").is_symlink() && !dir.path(target).is_symlink());
        assert_eq!(bits(&dir.get(target)), bits(&piped));
        std::fs::remove_file(dir.path("link")).unwrap();
    }
}

#[test]
fn outputs_that_make_no_sense_are_refused() {
    let dir = world(4);
    says(&colourfulness(&dir, "pairs.parquet", "x.png").fails(2), &["x.png", "x.parquet"]);
    says(&score(&dir, "pairs.parquet --shard 0/2 -o -").fails(2), &["--shard", "folder"]);
    dir.write("head.pth", "weights");
    let model = format!("aesthetic={},head.pth", scorers().join("aesthetic").display());
    let over = dir.tool("score").args(["pairs.parquet", "--metrics", "aesthetic", "--model", &model, "-o", "head.pth"]);
    says(&over.fails(2), &["head.pth is also an input"]);
    std::fs::remove_file(dir.path("head.pth")).unwrap();
    dir.write("kept.parquet.partial", "PAR1 is how what a killed run left begins");
    colourfulness(&dir, "pairs.parquet", "kept.parquet").ok();
    std::fs::create_dir(dir.path("busy.parquet.partial")).unwrap();
    dir.write("busy.parquet.partial/mine.txt", "of somebody else");
    says(&colourfulness(&dir, "pairs.parquet", "busy.parquet").fails(2), &["busy.parquet.partial"]);
    colourfulness(&dir, "pairs.parquet", "scores.parquet").ok();
    let vote = dir.tool("vote").args(["scores.parquet", "--metrics", "colourfulness", "-o", "busy.parquet"]);
    says(&vote.fails(2), &["busy.parquet.partial"]);
    // A file of somebody's, whose name is that of the unfinished output.
    dir.write("out.parquet.partial", "my notes\n");
    says(
        &colourfulness(&dir, "pairs.parquet", "out.parquet").fails(2),
        &["out.parquet.partial", "not a table", "rename"],
    );
    let vote = dir.tool("vote").args(["scores.parquet", "--metrics", "colourfulness", "-o", "out.parquet"]);
    says(&vote.fails(2), &["out.parquet.partial", "not a table", "rename"]);
    assert_eq!(dir.bytes("out.parquet.partial"), b"my notes\n");
    std::fs::remove_file(dir.path("out.parquet.partial")).unwrap();
    assert_eq!(dir.list(), ["busy.parquet.partial", "kept.parquet", "pairs.parquet", "scores.parquet"]);
    assert_eq!(dir.bytes("busy.parquet.partial/mine.txt"), b"of somebody else");
    let threads = dir.tool("score").args(["pairs.parquet", "-o", "x", "--threads", "4294967295"]).exits(2);
    says(&threads.err, &["--threads", "1024"]);
}

/// `ulimit -f`: the system sends a signal that kills, unless it is ignored.
#[test]
fn a_limit_on_files_is_a_sentence() {
    let dir = world(4);
    let score = env!("CARGO_BIN_EXE_score");
    let run = |limit: &str| {
        let line = format!("{limit} exec {score} pairs.parquet --metrics colourfulness -q -o out");
        let mut command = std::process::Command::new("bash");
        command.args(["-c", &line]).current_dir(dir.path(".")).output().unwrap()
    };
    let limited = run("ulimit -f 1;");
    let said = String::from_utf8(limited.stderr).unwrap();
    assert!(limited.status.code() == Some(2) && said.starts_with("score: cannot write"), "{said}");
    assert!(run("").status.success());
}

/// `ulimit -v`: Rust would abort where the system has no memory left.
#[test]
fn too_little_memory_is_a_sentence() {
    let dir = world(4);
    let (score, models) = (env!("CARGO_BIN_EXE_score"), scorers());
    let mut lacked = 0;
    for kilobytes in (80_000..160_000).step_by(10_000) {
        let line = format!(
            "ulimit -v {kilobytes}; exec {score} pairs.parquet --models {} --metrics hps --threads 1 -q -o out-{kilobytes}",
            models.display()
        );
        let run = std::process::Command::new("bash").args(["-c", &line]).current_dir(dir.path(".")).output().unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        match run.status.code() {
            Some(0) => {}
            Some(2) => assert!(said.starts_with("score: ") && said.lines().count() == 1, "{kilobytes}: {said}"),
            _ => panic!("{kilobytes}: {:?}: {said}", run.status),
        }
        lacked += usize::from(said.contains("no memory left"));
    }
    assert!(lacked > 0, "no limit was low enough");
}
