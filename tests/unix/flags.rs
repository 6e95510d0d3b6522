//! Command lines: --help, flags and how they are written.

use super::*;

#[test]
fn help_and_version() {
    for (tool, _) in all() {
        let help = Tool::new(tool).args(["--help"]).ok();
        says(help.text(), &["Usage: ", "Examples:", "Exit status:", "-q, --quiet"]);
        for flag in ["-o, --output <PATH>", "--threads"] {
            assert_eq!(help.text().contains(flag), tool != "check", "{tool} {flag}");
        }
        assert!(help.text().lines().all(|line| line.chars().count() <= 100), "{tool} --help is too wide");
        assert!(Tool::new(tool).args(["-h"]).ok().text().len() < help.text().len());
        let version = Tool::new(tool).args(["--version"]).ok();
        assert_eq!(version.text(), format!("{tool} {}\n", env!("CARGO_PKG_VERSION")));
    }
}

/// The examples of --help can be pasted from a terminal of 80 columns: none of their lines is wrapped.
#[test]
fn examples_fit_80_columns() {
    for (tool, _) in all() {
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

/// `COMMANDS` and `CHECK` cover every program of Cargo.toml but `rehearse`, which only make runs.
#[test]
#[cfg(feature = "nets")]
fn every_tool_is_here() {
    let manifest = include_str!("../../Cargo.toml");
    let mut tools: Vec<_> =
        manifest.split("[[bin]]\nname = \"").skip(1).map(|s| s.split('"').next().unwrap()).collect();
    let mut here: Vec<_> = all().map(|(tool, _)| tool).collect();
    tools.retain(|tool| *tool != "rehearse");
    tools.sort();
    here.sort();
    assert_eq!(tools, here);
}

#[test]
fn exit_code_2_for_a_wrong_command_line() {
    let dir = world();
    let before = listing(&dir.path(""));
    for (tool, args) in all() {
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
