//! Runs that are cut, killed or stopped, and what must not change the bytes.

use super::*;

#[test]
fn threads_batches_and_the_machine_s_mood_change_nothing() {
    let dir = world();
    sample(&dir, "prompts.txt", "a.parquet", "-n 3 --batch 8").ok();
    for rest in ["--batch 3", "--batch 1", "--batch 100", "--threads 1", "--threads 2"] {
        sample(&dir, "prompts.txt", "b.parquet", &format!("-n 3 {rest}")).ok();
        assert!(dir.bytes("a.parquet") == dir.bytes("b.parquet"), "{rest}");
    }
    let sdxl = format!("-n 3 --base {} --scheduler dpmpp --negative grey", fixture("sample/sdxl").display());
    sample(&dir, "prompts.txt", "xl.parquet", &sdxl).ok();
    for rest in ["--batch 2", "--threads 1"] {
        sample(&dir, "prompts.txt", "b.parquet", &format!("{sdxl} {rest}")).ok();
        assert!(dir.bytes("xl.parquet") == dir.bytes("b.parquet"), "SDXL {rest}");
    }
    let piped = sample(&dir, "-", "-", "-n 3").stdin(PROMPTS).ok();
    assert_eq!(pngs(&piped.table()), pngs(&dir.get("a.parquet")));
    sample(&dir, "prompts.txt", "b.parquet", "-n 3 --seed 1").ok();
    assert_ne!(pngs(&dir.get("a.parquet")), pngs(&dir.get("b.parquet")));
}

#[test]
fn shards_put_together_are_the_whole() {
    let dir = world();
    sample(&dir, "prompts.txt", "whole.parquet", "-n 2").ok();
    for shard in ["2/3", "0/3", "1/3"] {
        sample(&dir, "prompts.txt", "parts", &format!("-n 2 --shard {shard}")).ok();
    }
    assert_eq!(dir.get("parts").columns(), dir.get("whole.parquet").columns());
    let names: Vec<_> = tree(&dir.path("parts")).into_keys().map(|p| p.display().to_string()).collect();
    assert_eq!(names, [0, 1, 2].map(|i| format!("part-{i:05}-of-00003.parquet")));
}

#[test]
fn a_killed_run_continues_to_the_same_bytes() {
    let dir = world();
    let rest = "-n 12 --batch 2 --steps 20";
    sample(&dir, "prompts.txt", "whole.parquet", rest).ok();
    let mut child = spawn(sample(&dir, "prompts.txt", "out.parquet", rest));
    let part = |i: usize| dir.path(&format!("out.parquet.partial/{i:06}.crc32c")); // written last
    wait_for("three parts", || part(2).exists());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!dir.path("out.parquet").exists());
    let stamp = |i| std::fs::metadata(part(i)).unwrap().modified().unwrap();
    let before = [stamp(0), stamp(1), stamp(2)];
    for other in ["--seed 1", "--steps 19", "--guidance 3", "-n 11"] {
        let rest: Vec<_> = rest.split(' ').collect();
        let flag = other.split(' ').next().unwrap();
        let kept: Vec<_> = rest.chunks(2).filter(|c| c[0] != flag).flatten().copied().collect();
        let error = sample(&dir, "prompts.txt", "out.parquet", &format!("{} {other}", kept.join(" "))).fails(2);
        says(&error, &["out.parquet.partial holds the unfinished parts of other work"]);
    }
    dir.write("other.txt", "a red bicycle\n");
    says(&sample(&dir, "other.txt", "out.parquet", rest).fails(2), &["other work"]);
    // SIGTERM in the second run; what is finished stays as it is.
    let mut child = spawn(sample(&dir, "prompts.txt", "out.parquet", rest));
    wait_for("a further part", || part(20).exists());
    std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(before, [stamp(0), stamp(1), stamp(2)]);
    // The third one draws the rest, but cannot put the table into place.
    let mut child = spawn(sample(&dir, "prompts.txt", "out.parquet", rest));
    wait_for("a further part", || part(21).exists());
    std::fs::create_dir(dir.path("out.parquet")).unwrap();
    dir.write("out.parquet/x", "in the way");
    assert_eq!(child.wait().unwrap().code(), Some(2));
    std::fs::remove_dir_all(dir.path("out.parquet")).unwrap();
    // So all images are there, and the fourth draws none: that shows in its time. (Other work may spoil a measurement.)
    copy(&dir.path("out.parquet.partial"), &dir.path("kept"));
    let took = |out: &str| {
        let began = Instant::now();
        sample(&dir, "prompts.txt", out, rest).ok();
        began.elapsed()
    };
    let quick = |_| {
        copy(&dir.path("kept"), &dir.path("out.parquet.partial"));
        took("out.parquet") < took("again.parquet") / 2
    };
    assert!((0..4).any(quick), "finished images are drawn again");
    assert!(dir.bytes("out.parquet") == dir.bytes("whole.parquet"));
    assert!(!dir.path("out.parquet.partial").exists());
}

/// A signal while the parts are joined is not lost: the join stops, and the parts stay for the next run.
#[test]
fn a_signal_during_the_join_keeps_the_parts() {
    let dir = world();
    let rest = "-n 20 --batch 1 --steps 1";
    sample(&dir, "prompts.txt", "whole.parquet", rest).ok();
    let stopped = |_| {
        let mut child = spawn(sample(&dir, "prompts.txt", "out.parquet", rest));
        wait_for("the join", || {
            dir.path("out.parquet.partial/whole.parquet.partial").exists() || dir.path("out.parquet").exists()
        });
        std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
        child.wait().unwrap().code() == Some(143) && dir.path("out.parquet.partial/000099.parquet").exists()
    };
    // The join may be over before the signal arrives.
    let again = |i| std::fs::remove_file(dir.path("out.parquet")).is_ok() || i == 0;
    assert!((0..6).filter(|&i| again(i)).any(stopped), "the signal was ignored");
    sample(&dir, "prompts.txt", "out.parquet", rest).ok();
    assert!(dir.bytes("out.parquet") == dir.bytes("whole.parquet"));
}

#[test]
fn a_reader_that_leaves_early_is_no_trouble() {
    use std::io::Read;
    let dir = world();
    let mut tool = sample(&dir, "prompts.txt", "-", "-n 20 --batch 2");
    let mut child =
        tool.command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut some = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
    assert!(Path::new(&dir.path("prompts.txt")).exists());
}

/// A picture can take minutes; a signal does not wait for it.
#[test]
fn a_signal_does_not_wait_for_a_picture() {
    let dir = world();
    let child = spawn(sample(&dir, "prompts.txt", "out", "--steps 900 -n 100 --batch 500"));
    wait_for("its folder", || dir.path("out.partial/plan.json").exists());
    std::thread::sleep(std::time::Duration::from_millis(300));
    let (mut child, told) = (child, Instant::now());
    let kill = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(told.elapsed().as_secs() < 10, "{:?}", told.elapsed()); // two seconds, on a machine that is not busy
}

/// candle has threads of its own for sums, which spin while they wait.
#[cfg(target_os = "linux")]
#[test]
fn nothing_computes_beside_the_workers() {
    let dir = world();
    // Each of the two threads adds tensors of 160,000 numbers, which candle would divide among its threads.
    let rest = format!("-n 4 --batch 20 --threads 2 --steps 2 --base {}", mini().display());
    let mut child = spawn(sample(&dir, "prompts.txt", "out.parquet", &rest));
    let tasks = format!("/proc/{}/task", child.id());
    let mut names = std::collections::BTreeSet::new();
    wait_for("the images", || {
        let tasks = std::fs::read_dir(&tasks).into_iter().flatten().flatten();
        names.extend(tasks.flat_map(|task| std::fs::read_to_string(task.path().join("comm"))));
        child.try_wait().unwrap().is_some()
    });
    assert!(dir.path("out.parquet").exists() && names.contains("sample\n"), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("candle")), "{names:?}");
}
