//! Launch lines of Diffusion-DPO's, diffusers' and kohya's scripts behind `--print-config`: what means the same here is taken over
//! under our names, and the rest is named with the reason why it is left out.

use std::path::Path;

use clap::error::ErrorKind;
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
    ("loss-type train-method", "loss"),
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

/// Flags that a run needs, under one of these names, beside those that clap asks for.
const NEEDED: [(&str, &[&[&str]]); 8] = [
    ("train", &[&["data", "replay"], &["labels", "replay"], &["output", "dry-run"]]),
    ("score", &[&["output"]]),
    ("sample", &[&["output"]]),
    ("vote", &[&["output"]]),
    ("encode", &[&["output"]]),
    ("pairs", &[&["output"]]),
    ("prompts", &[&["output"]]),
    ("refresh-ref", &[&["output"]]),
];

/// The rank of LoRA, as scripts name it.
const RANKS: [&str; 3] = ["rank", "network-dim", "lora-rank"];

/// Programs that start a script.
const LAUNCHERS: [&str; 5] = ["accelerate", "python", "python3", "torchrun", "deepspeed"];

/// A word of a command line, or a flag with its values.
enum Item<'a> {
    Word(String),
    Flag(Flag<'a>),
}

/// A flag as it was typed, the argument here that means the same, and the values.
struct Flag<'a> {
    typed: String,
    name: String,
    arg: Option<&'a Arg>,
    values: Vec<String>,
}

/// The words that mean something to `tool`, and a remark on each of the others, which are left out or changed.
pub(super) fn adapted(tool: &str, command: &Command, words: Vec<String>) -> (Vec<String>, Vec<String>) {
    let words = unquoted(words);
    let (words, mut remarks) = without_launcher(tool, words);
    // A value that this program cannot read is the user's mistake, unless it was typed for another one.
    let launched = !remarks.is_empty();
    let items = items(tool, command, words);
    let mut kept = vec![];
    for item in &items {
        match item {
            Item::Word(word) => kept.push(word.clone()),
            Item::Flag(flag) => {
                let (words, remark) = translated(tool, flag, &items);
                remarks.extend(remark);
                let (good, bad) = words.into_iter().partition(|word| !launched || is_readable(tool, command, word));
                kept.extend::<Vec<String>>(good);
                let bad: Vec<String> = bad;
                remarks.extend(bad.iter().map(|_| reason(tool, flag)));
            }
        }
    }
    (kept, remarks)
}

/// The flags that are needed and were not given, as `given` tells by their names.
pub(super) fn missing(tool: &str, given: impl Fn(&str) -> bool) -> impl Iterator<Item = &'static str> {
    let needed = NEEDED.into_iter().filter(move |(of, _)| *of == tool).flat_map(|(_, needed)| needed);
    needed.filter(move |names| !names.iter().any(|name| given(name))).map(|names| names[0])
}

/// The command line with the values of each flag beside it.
fn items<'a>(tool: &str, command: &'a Command, words: Vec<String>) -> Vec<Item<'a>> {
    let equals = match tool {
        "train" => TRAIN,
        "sample" => SAMPLE,
        _ => &[],
    };
    let (mut items, mut rest) = (vec![], words.into_iter().peekable());
    while let Some(word) = rest.next() {
        let Some(name) = foreign::name_of(&word) else {
            items.push(Item::Word(word));
            continue;
        };
        let same = equals.iter().find(|(theirs, _)| theirs.split(' ').any(|known| known == name));
        let own = find(command, &name).filter(|arg| !arg.is_positional());
        let arg = own.or_else(|| find(command, same?.1));
        let (typed, value) =
            word.split_once('=').map_or((&*word, None), |(flag, value)| (flag, Some(value.to_owned())));
        let any = arg.is_some_and(Arg::is_allow_hyphen_values_set);
        // An unknown flag takes all words up to the next flag, as Python's argparse may.
        let most = match (arg, &value) {
            (Some(arg), None) if is_switch(arg) || arg.is_require_equals_set() => 0,
            (Some(arg), None) => arg.get_num_args().map_or(1, |n| n.max_values()),
            (Some(_), Some(_)) => 1,
            (None, _) => usize::MAX,
        };
        // `--scale_lr true`, as some parsers of Python want it.
        if arg.is_some_and(is_switch)
            && let Some(answer) = value.clone().or_else(|| rest.next_if(|next| is_truth(next)))
        {
            if answer.eq_ignore_ascii_case("true") {
                items.push(Item::Flag(Flag { typed: typed.to_owned(), name, arg, values: vec![] }));
            }
            continue;
        }
        let mut values: Vec<String> = value.into_iter().collect();
        while values.len() < most
            && let Some(value) = rest.next_if(|next| (any && values.is_empty()) || !is_flag(next))
        {
            values.push(value);
        }
        items.push(Item::Flag(Flag { typed: typed.to_owned(), name, arg, values }));
    }
    items
}

/// The words of a launch line that was pasted in quotes, as one word.
fn unquoted(words: Vec<String>) -> Vec<String> {
    let is_line = |word: &String| !word.starts_with('-') && word.contains(" --") && !Path::new(word).exists();
    let taken_apart = |word: String| match is_line(&word) {
        true => word.split_whitespace().map(str::to_owned).collect(),
        false => vec![word],
    };
    words.into_iter().flat_map(taken_apart).collect()
}

/// `--rank`, `-o`, but not `-1` or `-`.
fn is_flag(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c == '-' || c.is_ascii_alphabetic()))
}

/// `NAME=1 accelerate launch ... train.py --flag` without what stands before the flags of the script.
fn without_launcher(tool: &str, mut words: Vec<String>) -> (Vec<String>, Vec<String>) {
    let Some(script) = words.iter().position(|word| word.ends_with(".py")) else { return (words, vec![]) };
    let launcher = words[..script].iter().position(|word| LAUNCHERS.contains(&&**word)).unwrap_or(script);
    let variables = words[..launcher].iter().rev().take_while(|word| is_variable(word)).count();
    let name = words[script].rsplit('/').next().unwrap_or_default().to_owned();
    let said: Vec<String> = words.drain(launcher - variables..=script).collect();
    let (set, started) = said.split_at(variables);
    let mut remarks: Vec<String> =
        set.iter().map(|word| format!("{word}: a variable is set in front of the program's name")).collect();
    remarks.push(format!("{}: mpirun or srun starts the processes (pipelines/CLUSTER.md)", started.join(" ")));
    // Diffusion-DPO's script has the plain name.
    let prefers = |word: &String| word.starts_with("--beta_dpo") || word.starts_with("--train_method");
    if tool == "train" && name != "train.py" && !name.contains("dpo") && !words.iter().any(prefers) {
        remarks.push(format!(
            "{name}: it trains on single images, and this is a run on preferences, with --loss dpo; --loss sft trains on the winners \
             alone"
        ));
    }
    let adapts = name.contains("lora") || name.contains("train_network");
    let has_rank = |word: &String| foreign::name_of(word).is_some_and(|name| RANKS.contains(&&*name));
    if tool == "train" && adapts && !words.iter().any(has_rank) {
        words.push("--lora-rank=4".into());
        remarks.push(format!("{name}: --lora-rank 4 is what this script takes if its line names no rank"));
    }
    (words, remarks)
}

fn is_truth(word: &str) -> bool {
    word.eq_ignore_ascii_case("true") || word.eq_ignore_ascii_case("false")
}

/// `CUDA_VISIBLE_DEVICES=0`
fn is_variable(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// The words for a flag here, and a remark if it is left out or becomes something else.
fn translated(tool: &str, flag: &Flag, line: &[Item]) -> (Vec<String>, Vec<String>) {
    let flags = || line.iter().filter_map(|item| if let Item::Flag(flag) = item { Some(flag) } else { None });
    let value = flag.values.first().map(String::as_str);
    let remark = |why: &str| vec![format!("{} {}: {why}", flag.typed, flag.values.join(" "))];
    match (tool, &*flag.name, value) {
        ("train", "learning-rate", _) if flags().any(|flag| flag.name == "unet-lr") => {
            (vec![], remark("--unet_lr is that of the UNet"))
        }
        ("train", "dataset-name", Some(name)) => match Path::new(name).exists() || name.ends_with(".parquet") {
            true => (vec![name.to_owned()], vec![]),
            false => (vec![], remark("there is no such file; download its Parquet files, and name them as DATA")),
        },
        ("sample", "n-iter", _) if flags().any(|flag| flag.name == "n-samples") => {
            (vec![], remark("it draws as many times --n_samples images; give --images-per-prompt the product"))
        }
        ("train", "no-hflip", _) => (vec!["--augment=none".into()], vec![]),
        ("train", "cache-dir" | "allow-tf32", _) => (vec![], remark("it has no effect here")),
        // kohya's scripts take a share of all steps, too.
        ("train", "lr-warmup-steps", Some(text)) => match text.parse::<f64>() {
            Ok(share) if text.contains(['.', 'e']) && (0.0..1.0).contains(&share) => {
                let mut steps =
                    flags().filter(|flag| flag.arg.is_some_and(|arg| arg.get_long() == Some("max-train-steps")));
                match steps.next_back().and_then(|flag| flag.values.first()?.parse::<f64>().ok()) {
                    Some(steps) => {
                        let steps = (share * steps).round();
                        (
                            vec![format!("--lr-warmup-steps={steps}")],
                            remark(&format!("this share of all steps is {steps}")),
                        )
                    }
                    None => (vec![], remark("a share of all steps, which --max-train-steps does not say")),
                }
            }
            _ => (vec![format!("--lr-warmup-steps={text}")], vec![]),
        },
        ("train", "optimizer-args", _) => {
            let (mut words, mut remarks) = (vec![], vec![]);
            for value in &flag.values {
                match own_optimizer_args(value) {
                    Some(own) => words.extend(own),
                    None => remarks.push(format!("{} {value}: there is no such setting", flag.typed)),
                }
            }
            (words, remarks)
        }
        ("train", "optimizer-type" | "optimizer", Some(name)) if name.eq_ignore_ascii_case("adamw8bit") => {
            let why = "AdamW with moments in f32; --moments bf16 halves them, --optimizer adafactor takes a quarter";
            (vec!["--optimizer=adamw".into()], remark(why))
        }
        _ => {
            let Some((arg, name)) = flag.arg.and_then(|arg| Some((arg, arg.get_long()?))) else {
                return (vec![], vec![reason(tool, flag)]);
            };
            let values: Option<Vec<String>> = flag.values.iter().map(|value| fitting(arg, value)).collect();
            match values {
                Some(values) if values.is_empty() => (vec![format!("--{name}")], vec![]),
                Some(values) => (values.iter().map(|value| format!("--{name}={value}")).collect(), vec![]),
                None => (vec![], vec![reason(tool, flag)]),
            }
        }
    }
}

/// `weight_decay=0.01`, `betas=0.9,0.99` and `eps=1e-8`, as kohya's scripts hand them to the optimiser.
fn own_optimizer_args(setting: &str) -> Option<Vec<String>> {
    let (name, value) = setting.split_once('=')?;
    Some(match name {
        "weight_decay" => vec![format!("--adam-weight-decay={value}")],
        "eps" => vec![format!("--adam-epsilon={value}")],
        "betas" => {
            let (one, two) = value.trim_matches(['(', ')', '[', ']']).split_once(',')?;
            vec![format!("--adam-beta1={}", one.trim()), format!("--adam-beta2={}", two.trim())]
        }
        _ => return None,
    })
}

/// Whether the program can read the value of a flag.
fn is_readable(tool: &str, command: &Command, word: &str) -> bool {
    let read = command.clone().try_get_matches_from([tool, word]);
    !read.is_err_and(|error| matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation))
}

/// The value as this flag has it; `None` if the flag has no such value.
fn fitting(arg: &Arg, value: &str) -> Option<String> {
    let flag = arg.get_long().unwrap_or_default();
    let names = arg.get_possible_values();
    let known = || names.is_empty() || names.iter().any(|known| known.matches(value, true));
    let ours = match (flag, &*value.to_lowercase()) {
        ("mixed-precision", "fp16") | ("loss", "hinge") => None,
        ("save-dtype", "float" | "fp32") => Some("f32"),
        ("save-dtype", "fp16") => Some("f16"),
        ("optimizer", "adamw") => Some("adamw"),
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

fn reason(tool: &str, flag: &Flag) -> String {
    let known = flag.arg.and_then(Arg::get_long).map(|name| format!("--{name} has no such value"));
    let why = foreign::other_value(&flag.name).or_else(|| foreign::answer(tool, &flag.name)).map(str::to_owned);
    let why = why.or(known).unwrap_or_else(|| format!("`{tool}` has no such flag"));
    format!("{}: {why}", [&*flag.typed, &flag.values.join(" ")].join(" ").trim_end())
}
