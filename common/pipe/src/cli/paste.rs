//! Launch lines of Diffusion-DPO's, diffusers' and kohya's scripts behind `--print-config`: what means the same here is taken over
//! under our names, and the rest is named with the reason why it is left out.

use clap::{Arg, Command};

use super::config::{find, is_switch};
use super::foreign;

/// Flags of other programs, and the flag here that means the same.
type Equals = &'static [(&'static str, &'static str)];

const TRAIN: Equals = &[
    ("network-dim network-rank lora-dim lora-r", "lora-rank"),
    ("network-alpha", "lora-alpha"),
    ("network-weights", "policy"),
    ("optimizer-type", "optimizer"),
    ("loss-type", "loss"),
    ("unet-lr", "learning-rate"),
    ("save-every-n-steps", "checkpointing-steps"),
    ("save-precision", "save-dtype"),
    ("caption-dropout-rate", "proportion-empty-prompts"),
    ("max-data-loader-n-workers", "dataloader-num-workers"),
    ("log-with", "report-to"),
];

const SAMPLE: Equals = &[
    ("num-inference-steps ddim-steps num-steps", "steps"),
    ("guidance-scale cfg-scale cfg scale", "guidance"),
    ("negative-prompt", "negative"),
    ("num-images-per-prompt num-images n-samples n-iter images", "images-per-prompt"),
    ("model model-id pretrained-model-name-or-path", "base"),
    ("sampler", "scheduler"),
    ("h", "height"),
    ("w", "width"),
];

/// Programs that start a script.
const LAUNCHERS: [&str; 5] = ["accelerate", "python", "python3", "torchrun", "deepspeed"];

/// The words that mean something to `tool`, and what is left out of the others, a line each.
pub(super) fn adapted(tool: &str, command: &Command, words: Vec<String>) -> (Vec<String>, Vec<String>) {
    let (words, mut left_out) = without_launcher(words);
    let equals = match tool {
        "train" => TRAIN,
        "sample" => SAMPLE,
        _ => &[],
    };
    let (mut kept, mut rest) = (vec![], words.into_iter().peekable());
    while let Some(word) = rest.next() {
        let Some(name) = foreign::name_of(&word) else {
            kept.push(word);
            continue;
        };
        let same =
            equals.iter().find(|(theirs, _)| theirs.split(' ').any(|known| known == name)).map(|(_, ours)| *ours);
        let own = find(command, &name).filter(|arg| !arg.is_positional());
        let arg = own.or_else(|| find(command, same?));
        // A flag that nobody knows takes the word after it, unless that is a flag.
        let takes = arg.is_none_or(|arg| !is_switch(arg) && !arg.is_require_equals_set());
        let mut value = word.split_once('=').map(|(_, value)| value.to_owned());
        if value.is_none() && takes {
            let any = arg.is_some_and(Arg::is_allow_hyphen_values_set);
            value = rest.next_if(|next| any || !next.starts_with("--"));
        }
        let fitting = arg.map(|arg| value.as_ref().map(|value| fitting(arg, value)));
        let several = arg.and_then(Arg::get_num_args).is_some_and(|n| n.max_values() > 1) && !word.contains('=');
        let mut more: Vec<String> = vec![];
        while let Some(value) = rest.next_if(|next| several && !next.starts_with('-')) {
            more.push(value);
        }
        match (arg.and_then(Arg::get_long), fitting) {
            (Some(name), Some(None)) => kept.push(format!("--{name}")),
            (Some(name), Some(Some(Some(value)))) => {
                kept.extend([value].into_iter().chain(more).map(|value| format!("--{name}={value}")))
            }
            _ => left_out.push(reason(tool, &word, value.as_deref())),
        }
    }
    (kept, left_out)
}

/// `accelerate launch ... train.py --flag` without what stands before the flags of the script.
fn without_launcher(mut words: Vec<String>) -> (Vec<String>, Vec<String>) {
    let Some(script) = words.iter().position(|word| word.ends_with(".py")) else { return (words, vec![]) };
    let launcher = words[..script].iter().position(|word| LAUNCHERS.contains(&&**word)).unwrap_or(script);
    let said: Vec<String> = words.drain(launcher..=script).collect();
    (words, vec![format!("{}: mpirun or srun starts the processes (pipelines/CLUSTER.md)", said.join(" "))])
}

/// The value as this flag has it; `None` where the flag has no such value.
fn fitting(arg: &Arg, value: &str) -> Option<String> {
    let flag = arg.get_long().unwrap_or_default();
    let known = || arg.get_possible_values().iter().any(|known| known.matches(value, true));
    let ours = match (flag, &*value.to_lowercase()) {
        ("mixed-precision", "fp16") | ("loss", "hinge") => None,
        ("save-dtype", "float" | "fp32") => Some("f32"),
        ("save-dtype", "fp16") => Some("f16"),
        ("optimizer", name) if name.starts_with("adamw") => Some("adamw"),
        ("optimizer", "adafactor") => Some("adafactor"),
        ("optimizer", _) => None,
        ("loss", "sigmoid") => Some("dpo"),
        // kohya's width and height.
        ("resolution", _) => match value.split_once(',') {
            Some((width, height)) => (width.trim() == height.trim()).then_some(width.trim()),
            None => Some(value),
        },
        (flag, _) if foreign::other_value(flag).is_some() && !known() => None,
        _ => Some(value),
    };
    ours.map(str::to_owned)
}

fn reason(tool: &str, word: &str, value: Option<&str>) -> String {
    let flag = word.split('=').next().unwrap_or_default();
    let name = foreign::name_of(word).unwrap_or_default();
    let why = foreign::other_value(&name).or_else(|| foreign::answer(tool, &name));
    let why = why.map_or_else(|| format!("`{tool}` has no such flag"), str::to_owned);
    format!("{}: {why}", [flag, value.unwrap_or_default()].join(" ").trim_end())
}
