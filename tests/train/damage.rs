//! What somebody else does to the output folder: damaged, removed and foreign files. Nothing is passed over in silence, and what was
//! whole is not lost.

use std::{fs, process::Stdio};

use super::*;

const RUN: &str = "--steps 6 --refresh-every 3 --checkpointing_steps 2";

/// A run that was killed after its fifth step, in `x`, and the whole one, in `whole`.
fn killed() -> Dir {
    let dir = world();
    train(&dir, "whole", RUN).ok();
    train(&dir, "kept", &RUN.replace("6", "5")).ok();
    for name in ["kept/unet", "kept/state"] {
        fs::remove_dir_all(dir.path(name)).unwrap();
    }
    dir
}

fn again(dir: &Dir) {
    let _ = fs::remove_dir_all(dir.path("x"));
    copy(&dir.path("kept"), &dir.path("x"));
}

fn change(dir: &Dir, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = dir.bytes(name);
    change(&mut bytes);
    dir.write(name, bytes);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_is_offered() {
    let dir = killed();
    let latest = format!("{RUN} --resume");
    type Change = (&'static str, fn(&mut Vec<u8>));
    let changes: [Change; 5] = [
        ("a byte of the header", |b| b[100] ^= 0x41),
        ("a byte of the numbers", |b| {
            let at = b.len() - 1001;
            b[at] ^= 0x41;
        }),
        ("a block of zeros", |b| {
            let at = b.len() / 2;
            b[at..at + 512].fill(0)
        }),
        ("half of the file", |b| b.truncate(b.len() / 2)),
        ("no byte", Vec::clear),
    ];
    for file in ["state/optimizer.safetensors", "unet/diffusion_pytorch_model.safetensors"] {
        for (what, damage) in changes {
            again(&dir);
            change(&dir, &format!("x/checkpoint-4/{file}"), damage);
            let before = tree(&dir.path("x"));
            let error = train(&dir, "x", &latest).fails(2);
            says(&error, &["x/checkpoint-4", "not a whole checkpoint", "--resume-from-checkpoint x/checkpoint-2"]);
            assert!(tree(&dir.path("x")) == before, "{what} of {file}");
            says(&train(&dir, "x", &format!("{RUN} --resume checkpoint-4")).fails(2), &["x/checkpoint-4", file]);
            assert!(tree(&dir.path("x")) == before, "{what} of {file}");
        }
        again(&dir);
        fs::remove_file(dir.path("x/checkpoint-4").join(file)).unwrap();
        says(&train(&dir, "x", &latest).fails(2), &["x/checkpoint-4", "--resume-from-checkpoint x/checkpoint-2"]);
    }
    again(&dir);
    fs::remove_file(dir.path("x/checkpoint-4/unet/config.json")).unwrap();
    says(&train(&dir, "x", &latest).fails(2), &["x/checkpoint-4", "--resume-from-checkpoint x/checkpoint-2"]);
    says(
        &train(&dir, "x", &format!("{RUN} --resume checkpoint-4")).fails(2),
        &["x/checkpoint-4/unet lacks config.json"],
    );
    // As it is advised, and by the name alone, as diffusers' scripts take it.
    for named in ["x/checkpoint-2", "checkpoint-2"] {
        again(&dir);
        change(&dir, "x/checkpoint-4/state/optimizer.safetensors", |b| b[100] ^= 0x41);
        train(&dir, "x", &format!("{RUN} --resume {named}")).ok();
        assert_same(&weights(&dir.path("whole")), &weights(&dir.path("x")));
        assert!(log(&dir.path("x")).len() == 6);
    }
    // Weights that were removed where the run ended are made again, from the newest checkpoint.
    copy(&dir.path("whole"), &dir.path("less"));
    fs::remove_file(dir.path("less/unet/diffusion_pytorch_model.safetensors")).unwrap();
    let run = train(&dir, "less", &latest).ok();
    says(&run.err, &["less/unet/diffusion_pytorch_model.safetensors was removed", "less/checkpoint-4"]);
    assert_same(&weights(&dir.path("whole")), &weights(&dir.path("less")));
    // Where the run ended, and nothing older is left.
    copy(&dir.path("whole"), &dir.path("end"));
    for step in [2, 4] {
        fs::remove_dir_all(dir.path(&format!("end/checkpoint-{step}"))).unwrap();
    }
    change(&dir, "end/unet/diffusion_pytorch_model.safetensors", |b| *b.last_mut().unwrap() ^= 1);
    says(&train(&dir, "end", &latest).fails(2), &["end/unet", "is damaged", "there is no other", "-o"]);
    // A checkpoint of an earlier version carries no checksums.
    again(&dir);
    let old = |name: &str, with: &str, without: &str| {
        change(&dir, name, |b| {
            let header = 8 + u64::from_le_bytes(b[..8].try_into().unwrap()) as usize;
            let text = String::from_utf8(b[8..header].to_vec()).unwrap();
            assert!(text.contains(with));
            let mut text = text.replace(with, without);
            text += &" ".repeat(header - 8 - text.len());
            b[8..header].copy_from_slice(text.as_bytes());
        });
    };
    for file in ["state/optimizer.safetensors", "unet/diffusion_pytorch_model.safetensors"] {
        old(&format!("x/checkpoint-4/{file}"), "\"crc32c\"", "\"crc32d\"");
    }
    says(&train(&dir, "x", &latest).fails(2), &["x/checkpoint-4", "lost its checksum"]);
    old("x/checkpoint-4/state/optimizer.safetensors", ",\\\"summed\\\":true", "");
    train(&dir, "x", &latest).ok();
    assert_same(&weights(&dir.path("whole")), &weights(&dir.path("x")));
    assert!(dir.path("x/config.toml").exists());
}

#[test]
fn a_checkpoint_is_named_as_diffusers_scripts_name_it() {
    let dir = killed();
    again(&dir);
    fs::create_dir(dir.path("checkpoint-4")).unwrap();
    let error = train(&dir, "x", &format!("{RUN} --resume checkpoint-4")).fails(2);
    says(&error, &["--resume-from-checkpoint checkpoint-4", "x/checkpoint-4", "./checkpoint-4"]);
    says(&train(&dir, "x", &format!("{RUN} --resume old/checkpoint-4")).fails(2), &["(there is x/checkpoint-4)"]);
    // Other settings: the message says what to name.
    let error = train(&dir, "x", &format!("{RUN} --resume --lr 1e-5")).fails(2);
    says(&error, &["x/checkpoint-4 was made with another learning_rate", "--resume-from-checkpoint x/checkpoint-4"]);
}

#[test]
fn checkpoints_of_other_programs_are_left_alone() {
    let dir = killed();
    for (theirs, resume) in [("checkpoint-1", "latest"), ("checkpoint-8", "latest"), ("checkpoint-5", "checkpoint-2")] {
        again(&dir);
        if theirs == "checkpoint-1" {
            for ours in [2, 4] {
                fs::remove_dir_all(dir.path(&format!("x/checkpoint-{ours}"))).unwrap();
            }
        }
        fs::create_dir_all(dir.path(&format!("x/{theirs}/unet"))).unwrap();
        dir.write(&format!("x/{theirs}/unet/diffusion_pytorch_model.safetensors"), "weights of another program");
        dir.write(&format!("x/{theirs}/optimizer.bin"), "moments of another program");
        let before = tree(&dir.path("x"));
        says(&train(&dir, "x", &format!("{RUN} --resume {resume}")).fails(2), &[&format!("x/{theirs}"), "state/"]);
        assert!(tree(&dir.path("x")) == before);
    }
    // A model's folder is not an output, whether or not a run is to be continued there.
    copy(&oracle("base"), &dir.path("model"));
    for resume in ["", "--resume"] {
        says(&train_into(&dir, "model", &format!("{RUN} {resume}")).fails(2), &["model", "-o"]);
    }
    assert!(tree(&dir.path("model")) == tree(&oracle("base")));
}

#[test]
fn lines_of_a_damaged_log_are_not_lost() {
    let dir = killed();
    let sound = String::from_utf8(dir.bytes("kept/log.jsonl")).unwrap();
    let four: String = sound.lines().take(4).map(|line| format!("{line}\n")).collect();
    type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);
    let damages: [Damage; 3] =
        [&|b| b.splice(0..0, [0, 255, 255, b'\n']).for_each(drop), &|b| b[3] = 255, &|b| b.extend([0; 300])];
    for damage in damages {
        again(&dir);
        change(&dir, "x/log.jsonl", damage);
        let damaged = dir.bytes("x/log.jsonl");
        train(&dir, "x", &format!("{RUN} --resume")).ok();
        assert!(dir.bytes("x/log.jsonl.1") == damaged, "the file as it was");
        let steps: Vec<_> = log(&dir.path("x")).iter().map(|line| line["step"].as_u64().unwrap()).collect();
        assert!(steps == [1, 2, 3, 4, 5, 6] || steps == [2, 3, 4, 5, 6], "{steps:?}");
    }
    // Half a line at the end is what a kill leaves.
    again(&dir);
    dir.write("x/log.jsonl", format!("{sound}{}", &sound[..40]));
    train(&dir, "x", &format!("{RUN} --resume")).ok();
    assert!(!dir.path("x/log.jsonl.1").exists());
    assert!(dir.bytes("x/log.jsonl").starts_with(four.as_bytes()) && log(&dir.path("x")).len() == 6);
}

/// Its earlier checkpoints are gone, which the run says; all else is there.
#[test]
fn a_folder_that_is_removed_during_the_run_is_written_again() {
    let dir = world();
    let rest = "--steps 60 --train_batch_size 2 --report_to tensorboard";
    let mut tool = train(&dir, "x", rest);
    let child = tool.command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("some steps", || log_lines(&dir.path("x")) >= 3);
    while dir.path("x").exists() {
        let _ = fs::remove_dir_all(dir.path("x"));
    }
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    says(&String::from_utf8(ended.stderr).unwrap(), &["x was removed or replaced", "60 steps"]);
    let steps: Vec<_> = log(&dir.path("x")).iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=60).collect::<Vec<_>>());
    train(&dir, "whole", rest).ok();
    assert_same(&weights(&dir.path("whole")), &weights(&dir.path("x")));
}
