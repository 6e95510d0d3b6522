//! Files of settings: `--config`, `--print-config`, the file beside log.jsonl; and what is made of the same definitions of flags:
//! completions and man pages.

mod util;

use std::process::Command;

use util::*;

/// A command line of each tool, of which a file of settings is made.
const LINES: &[&str] = &[
    "prompts a.tsv b.txt -o p.parquet --set x --only-set seen,unseen --max 20",
    "pairs folder list.csv -o p.parquet --columns caption=prompt,jpg_0=a --root x --skip-bad --max 3",
    "vote a.parquet -o l.parquet --rule weighted --weights hps=1,clip=0.5 --human-voter --seed 18446744073709551615",
    "winrate a.parquet b.parquet --best-of 2 --by style --tests --require 0.5",
    #[cfg(feature = "nets")]
    "score pairs.parquet -o s.parquet --models DIR --model clip=a,b --model hps=c --metrics hps,clip --hps-version 2.0 --skip-bad",
    #[cfg(feature = "nets")]
    "encode pairs.parquet --base base -o latents --augment independent-flip --threads 2",
    #[cfg(feature = "nets")]
    "train latents -o out --labels l.parquet --base base --refresh-every 10 --lr 1e-5 --steps 2000 --use-adafactor --scale-lr --gradient-checkpointing",
    #[cfg(feature = "nets")]
    "train latents -o out --labels l.parquet --base base --lora-rank 4 --lora-targets to_q,to_k --resume --max-grad-norm inf",
    #[cfg(feature = "nets")]
    "refresh-ref --policy p --reference r --rate 0.5 -o out",
    #[cfg(feature = "nets")]
    "sample - --base base -o i.parquet -n 5 --negative --ugly\\,\"é\" --guidance 1.5",
    #[cfg(feature = "nets")]
    "report --winrates a.json b.json --images c.parquet --scale 3 --sheet s.png --title 2024",
    #[cfg(feature = "nets")]
    "check a.parquet b/ --quick",
];

fn split(line: &str) -> (&str, Vec<&str>) {
    let mut words = line.split(' ');
    (words.next().unwrap(), words.collect())
}

#[test]
fn a_printed_file_gives_the_same_settings_back() {
    let dir = Dir::new();
    for (tool, args) in LINES.iter().map(|line| split(line)) {
        let first = dir.tool(tool).args(&args).arg("--print-config").ok();
        dir.write("run.toml", first.text());
        let again = dir.tool(tool).args(["--config", "run.toml", "--print_config"]).ok();
        assert_eq!(again.text(), first.text(), "{tool} {args:?}");
        // One file for several tools: each has its table.
        let keys: String =
            first.text().lines().filter(|line| !line.starts_with('#')).map(|l| format!("{l}\n")).collect();
        dir.write(
            "all.toml",
            format!("[vote]\nrule = 'soft'\n[{tool}]\n{keys}").replace("[vote]\nrule = 'soft'\n[vote]", "[vote]"),
        );
        assert_eq!(dir.tool(tool).args(["--config", "all.toml", "--print-config"]).ok().text(), first.text());
    }
}

#[test]
fn the_command_line_wins_over_the_file() {
    let dir = Dir::new();
    let file =
        "scores = ['a.parquet', 'b.parquet']\nrule = 'weighted'\nweights = ['hps=1']\nhuman_voter = true\nseed = 3\n";
    dir.write("run.toml", file);
    let settings = |args: &str| {
        let run = dir.tool("vote").args(["--config", "run.toml", "--print-config"]).args(args.split_whitespace()).ok();
        run.text().to_owned()
    };
    says(
        &settings(""),
        &["scores = [\"a.parquet\", \"b.parquet\"]", "human-voter = true", "seed = 3", "weights = [\"hps=1\"]"],
    );
    says(&settings("c.parquet"), &["scores = [\"c.parquet\"]"]);
    says(&settings("--seed 5 --human-voter=false"), &["seed = 5", "human-voter = false"]);
    // --fit contradicts --weights, and was typed.
    let fitted = settings("--fit dawid-skene");
    says(&fitted, &["fit = \"dawid-skene\""]);
    assert!(!fitted.contains("weights ="), "{fitted}");
    // The program's own table is nearer than the keys above it.
    dir.write("run.toml", "seed = 3\n[vote]\nseed = 4\n[train]\nno-such-flag = 1\n");
    says(&settings(""), &["seed = 4"]);
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_line() {
    let dir = Dir::new();
    for (file, parts) in [
        ("\nhumen-voter = true", &["run.toml:2", "--humen-voter", "--human-voter"][..]),
        ("nothing_like_it = 1", &["run.toml:1", "nothing_like_it", "vote --help"]),
        ("seed = 'many'", &["run.toml:1", "many", "--seed"]),
        ("rule = 'most-of-them'", &["run.toml:1", "most-of-them", "majority"]),
        ("human-voter = 'yes'", &["run.toml:1", "human-voter", "true or false"]),
        ("rule = ['soft', 'human']", &["run.toml:1", "rule", "one value"]),
        ("metrics = []", &["run.toml:1", "metrics", "empty"]),
        ("seed = 1\nseed = 2", &["run.toml:2", "duplicate"]),
        ("output = 'a'\noutput_dir = 'b'", &["run.toml:2", "output_dir"]),
        ("[voted]\nseed = 1", &["run.toml:1", "[voted]", "vote"]),
        ("config = 'other.toml'", &["run.toml:1", "config", "command line"]),
        ("seed = ", &["run.toml:1"]),
        ("seed = 2024-01-01", &["run.toml:1", "seed", "datetime"]),
    ] {
        dir.write("run.toml", file);
        says(&dir.tool("vote").args(["s.parquet", "-o", "out", "--config", "run.toml"]).fails(2), parts);
    }
    says(&dir.tool("vote").args(["--config", "no.toml"]).fails(2), &["--config", "no.toml"]);
    assert_eq!(dir.list(), ["run.toml"]);
}

#[cfg(feature = "nets")]
#[test]
fn a_run_of_train_keeps_its_settings_and_runs_again_from_them() {
    use util::world::*;
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(12));
    dir.put("labels.parquet", &labels(&pairs(12), some));
    copy(&oracle("base"), &dir.path("base"));
    let line = "pairs.parquet --labels labels.parquet --base base -o first --resolution 16 --train_batch_size 4 --lr 1e-4 \
                --max_train_steps 3 --refresh-every 2 --lr_warmup_steps 2 --seed 7";
    dir.tool("train").args(line.split_whitespace()).ok();
    says(
        &String::from_utf8(dir.bytes("first/config.toml")).unwrap(),
        &["max-train-steps = 3", "seed = 7", "adam-beta1 = 0.9"],
    );
    dir.tool("train").args(["--config", "first/config.toml", "-o", "again"]).ok();
    let weights = "unet/diffusion_pytorch_model.safetensors";
    assert!(dir.bytes(&format!("first/{weights}")) == dir.bytes(&format!("again/{weights}")), "not the same run");
    dir.tool("train").args(["--config", "first/config.toml", "-o", "short", "--steps", "1"]).ok();
    assert_eq!((log(&dir.path("first")).len(), log(&dir.path("short")).len()), (3, 1));
}

/// What the READMEs of Diffusion-DPO, diffusers and kohya's scripts have people type.
#[cfg(feature = "nets")]
const LAUNCHES: &[(&str, &[&str], &[&str])] = &[
    (
        "accelerate launch --mixed_precision=fp16 train.py --pretrained_model_name_or_path=base --dataset_name=pairs.parquet \
         --train_batch_size=1 --dataloader_num_workers=16 --gradient_accumulation_steps=2 --max_train_steps=2 \
         --lr_scheduler=constant_with_warmup --lr_warmup_steps=500 --learning_rate=1e-8 --scale_lr \
         --cache_dir=/export/share/datasets/ --checkpointing_steps 500 --beta_dpo 5000 --output_dir=out",
        &[
            "base = \"base\"", "data = [\"pairs.parquet\"]", "learning-rate = 1e-8", "scale-lr = true",
            "beta-dpo = 5000",
        ],
        &[
            "# accelerate launch --mixed_precision=fp16 train.py", "# --cache_dir /export/share/datasets/: ",
            "given: labels",
        ],
    ),
    (
        "accelerate launch train_diffusion_dpo.py --pretrained_model_name_or_path=base --output_dir=out \
         --mixed_precision=fp16 --dataset_name=pairs.parquet --resolution=16 --train_batch_size=16 \
         --gradient_accumulation_steps=2 --gradient_checkpointing --use_8bit_adam --rank=8 --learning_rate=1e-5 --report_to=wandb \
         --lr_scheduler=constant --lr_warmup_steps=0 --max_train_steps=2 --checkpointing_steps=100 \
         --run_validation --validation_steps=50 --seed=0 --push_to_hub --beta_dpo 2500 --loss_type sigmoid",
        &["lora-rank = 8", "resolution = 16", "beta-dpo = 2500", "loss = \"dpo\"", "gradient-checkpointing = \"on\""],
        &["# --mixed_precision fp16: ", "# --use_8bit_adam: ", "# --report_to wandb: ", "# --push_to_hub: "],
    ),
    (
        "accelerate launch --num_cpu_threads_per_process 1 train_network.py --pretrained_model_name_or_path=base \
         --dataset_config=data.toml --output_dir=out --output_name=my_lora --save_model_as=safetensors \
         --prior_loss_weight=1.0 --max_train_steps=2 --learning_rate=1e-4 --optimizer_type=AdamW8bit --xformers \
         --mixed_precision=fp16 --cache_latents --gradient_checkpointing --save_every_n_steps=100 --network_module=networks.lora \
         --network_dim=4 --network_alpha=8 --resolution=16,16 --lr_scheduler=polynomial --no_such_thing 3",
        &["lora-rank = 4", "lora-alpha = 8", "checkpointing-steps = 100", "resolution = 16", "optimizer = \"adamw\""],
        &[
            "# --network_module networks.lora: ", "# --mixed_precision fp16: it takes",
            "# --lr_scheduler polynomial: ", "# --no_such_thing 3: ", "given: data", "given: labels",
        ],
    ),
    (
        "CUDA_VISIBLE_DEVICES=0 OMP_NUM_THREADS=2 accelerate launch sd-scripts/train_network.py --pretrained_model_name_or_path=base \
         --output_dir=out --optimizer_type AdamW8bit --optimizer_args weight_decay=0.02 betas=0.8,0.98 decouple=True \
         --learning_rate=5e-5 --unet_lr=1e-4 --resolution=512,768 --max_train_steps 40 --lr_warmup_steps=0.1 --seed -3 \
         --network_args conv_dim=4 conv_alpha=1 --loss_type l2 --network_dim 4 --lr_scheduler_args a=1 b=2 -q",
        &[
            "learning-rate = 0.0001", "lr-warmup-steps = 4", "optimizer = \"adamw\"", "adam-weight-decay = 0.02",
            "adam-beta1 = 0.8", "adam-beta2 = 0.98", "quiet = true",
        ],
        &[
            "# CUDA_VISIBLE_DEVICES=0: ", "# OMP_NUM_THREADS=2: ", "# accelerate launch sd-scripts/train_network.py: ",
            "# train_network.py: it trains on single images",
            "# --optimizer_type AdamW8bit: AdamW with moments in f32", "# --optimizer_args decouple=True: ",
            "# --learning_rate 5e-5: --unet_lr", "# --resolution 512,768: it takes one number",
            "# --lr_warmup_steps 0.1: this share of all steps is 4", "# --seed -3: ",
            "# --network_args conv_dim=4 conv_alpha=1: ", "# --loss_type l2: --loss ",
            "# --lr_scheduler_args a=1 b=2: ", "given: data",
        ],
    ),
    (
        "accelerate launch train_text_to_image.py --pretrained_model_name_or_path=base --dataset_name=org/cats --learning_rate=1e-5 \
         --lr_warmup_steps 0.1 --no_hflip --optimizer_type Lion",
        &["loss = \"dpo\"", "augment = \"none\""],
        &[
            "# train_text_to_image.py: it trains on single images", "# --dataset_name org/cats: there is no such file",
            "# --lr_warmup_steps 0.1: a share of all steps", "# --optimizer_type Lion: ", "given: data",
            "given: output",
        ],
    ),
    (
        "accelerate launch train_network.py --pretrained_model_name_or_path=base --output_dir=out --max_train_steps=2 \
         --learning_rate=1e-4",
        &["lora-rank = 4"],
        &["# train_network.py: --lora-rank 4 is what"],
    ),
    (
        "accelerate launch flux_train_network.py --pretrained_model_name_or_path=base --clip_l clip_l.safetensors --ae ae.safetensors \
         --timestep_sampling shift --scale_weight_norms 1 --lora_layers all --scale_lr true --use_adafactor false --output_dir out",
        &["scale-lr = true", "use-adafactor = false"],
        &[
            "# --clip_l clip_l.safetensors: --base", "# --ae ae.safetensors: ",
            "# --timestep_sampling shift: --weighting", "# --lora_layers all: --lora-targets",
        ],
    ),
    (
        "python train.py --pretrained_model_name_or_path=base --train_method sft --dataset_name=pairs.parquet --output_dir out",
        &["loss = \"sft\""],
        &["# python train.py: "],
    ),
];

#[cfg(feature = "nets")]
#[test]
fn launch_lines_of_other_programs_become_a_file_that_trains() {
    use util::world::*;
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(8));
    dir.put("labels.parquet", &labels(&pairs(8), some));
    copy(&oracle("base"), &dir.path("base"));
    for (line, kept, left_out) in LAUNCHES {
        let run = dir.tool("train").arg("--print-config").args(line.split_whitespace()).ok();
        says(run.text(), kept);
        says(run.text(), left_out);
        dir.write("run.toml", run.text());
        // Words of other programs are never taken for tables.
        assert!(
            run.text().contains("data = [\"pairs.parquet\"]") || !run.text().contains("\ndata ="),
            "{}",
            run.text()
        );
        let data: &[&str] = if run.text().contains("\ndata =") { &[] } else { &["pairs.parquet"] };
        let train =
            dir.tool("train").args(["--config", "run.toml", "--labels", "labels.parquet", "--resolution", "16"]);
        train.args(["--train_batch_size", "2", "--dry-run"]).args(data).ok();
    }
    // Typed without another program's line, the same values are errors that say what is meant.
    for (flag, value, says_so) in [("--lr_warmup_steps", "0.1", "not a share"), ("--resolution", "512,768", "square")] {
        let error = dir.tool("train").args(["pairs.parquet", "-o", "x", flag, value]).fails(2);
        says(&error, &[&flag.replace('_', "-"), value, says_so]);
    }
    let run = dir
        .tool("sample")
        .args(["--print-config", "p.txt", "--model", "base", "--num_inference_steps=20", "--scale", "7"])
        .ok();
    says(run.text(), &["base = \"base\"", "steps = 20", "guidance = 7", "prompts = [\"p.txt\"]"]);
}

fn tools() -> Vec<&'static str> {
    let mut tools: Vec<_> = LINES.iter().map(|line| split(line).0).collect();
    tools.dedup();
    tools
}

/// Whether a program of the system is there.
fn is_there(program: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success()
}

#[test]
fn completions_load_and_name_every_flag() {
    let dir = Dir::new();
    for tool in tools() {
        for (shell, file, begin) in [
            ("bash", "c.bash", "complete -F"),
            ("zsh", &*format!("_{tool}"), "#compdef"),
            ("fish", "c.fish", "complete -c"),
        ] {
            let run = Tool::new(tool).args(["--generate", &format!("complete-{shell}")]).ok();
            says(run.text(), &[&format!("{begin} "), tool, "json", "config"]);
            dir.write(file, run.text());
            if is_there(shell) {
                // Loaded as a user's shell loads them, and asked.
                let check = match shell {
                    "bash" => format!("source {file} && complete -p {tool}"),
                    "zsh" => format!(
                        "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; autoload +X _{tool} && print -r -- ${{_comps[{tool}]}} --config"
                    ),
                    _ => format!("source {file}; complete -C '{tool} --conf'"),
                };
                let own: &[&str] = if shell == "zsh" { &["-f"] } else { &[] };
                let mut command = Command::new(shell);
                let home = dir.path("").display().to_string();
                command.args(own).args(["-c", &check]).current_dir(dir.path("")).env("HOME", home);
                let output = command.output().unwrap();
                assert!(output.status.success() && output.stderr.is_empty(), "{tool}: {output:?}");
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                says(&said, &[if shell == "fish" { "--config" } else { tool }]);
            }
        }
    }
    // In a shell: what follows --ru<TAB>, and the values of a flag.
    let script = "source <(\"$0\" --generate complete-bash); COMP_WORDS=(vote --ti); COMP_CWORD=1; _vote vote --ti vote; echo ${COMPREPLY[@]}; \
                  COMP_WORDS=(vote --ties ''); COMP_CWORD=2; _vote vote '' --ties; echo ${COMPREPLY[@]}";
    let output = Command::new("bash").args(["-c", script, env!("CARGO_BIN_EXE_vote")]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    says(&text, &["--ties", "abstain", "human"]);
}

#[test]
fn man_pages_render() {
    for tool in tools() {
        let run = Tool::new(tool).args(["--generate", "man"]).ok();
        says(run.text(), &[".TH", "\\-\\-json", "Examples:"]);
        if is_there("groff") {
            let dir = Dir::new();
            dir.write("page.1", run.text());
            let output = Command::new("groff")
                .args(["-man", "-Tascii", "-P-cbu", "-ww", "page.1"])
                .current_dir(dir.path(""))
                .output()
                .unwrap();
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{tool}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            says(&String::from_utf8_lossy(&output.stdout), &["SYNOPSIS", "OPTIONS"]);
        }
    }
}

/// A program that was installed under another name has a page and completions of that name.
#[test]
fn generated_files_have_the_name_of_the_program_as_installed() {
    let dir = Dir::new();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_vote"), dir.path("bdpo-vote")).unwrap();
    for (what, part) in
        [("man", ".TH bdpo-vote"), ("complete-zsh", "#compdef bdpo-vote"), ("complete-fish", "complete -c bdpo-vote")]
    {
        let output = Command::new(dir.path("bdpo-vote")).args(["--generate", what]).output().unwrap();
        says(&String::from_utf8_lossy(&output.stdout), &[part]);
    }
}

#[cfg(feature = "nets")]
#[test]
fn an_installation_has_every_program_with_its_page_and_completions() {
    let dir = Dir::new();
    let (bin, root) = (std::path::Path::new(env!("CARGO_BIN_EXE_vote")).parent().unwrap(), env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("make")
        .args(["-C", root, "install", &format!("BIN={}", bin.display()), "PREFIX=/usr", "PROGRAM_PREFIX=bdpo-"])
        .arg(format!("DESTDIR={}", dir.path("x y").display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    for tool in tools() {
        let name = format!("bdpo-{tool}");
        for (file, part) in [
            (format!("share/man/man1/{name}.1"), ".TH"),
            (format!("share/bash-completion/completions/{name}"), &*name),
            (format!("share/zsh/site-functions/_{name}"), "#compdef"),
            (format!("share/fish/vendor_completions.d/{name}.fish"), &*name),
        ] {
            says(&String::from_utf8(dir.bytes(&format!("x y/usr/{file}"))).unwrap(), &[part]);
        }
        let version = Command::new(dir.path(&format!("x y/usr/bin/{name}"))).arg("--version").output().unwrap();
        assert!(version.status.success());
    }
    assert!(dir.path("x y/usr/share/doc/balanced-dpo/LICENSE").exists());
    // Every program of the project is among them, and in the recipe; `rehearse` is for make alone.
    let recipe = std::fs::read_to_string(format!("{root}/pipelines/packages/recipe.yaml")).unwrap();
    let listed = recipe.lines().find_map(|line| line.trim().strip_prefix("bin: ")).unwrap();
    tools().iter().for_each(|tool| says(listed, &[&format!("bdpo-{tool}")]));
    let manifest = std::fs::read_to_string(format!("{root}/Cargo.toml")).unwrap();
    assert_eq!(std::fs::read_dir(dir.path("x y/usr/bin")).unwrap().count(), manifest.matches("[[bin]]").count() - 1);
}

/// Colours are for terminals that want them; none of them is in a pipe, and NO_COLOR forbids them everywhere.
#[test]
fn colours_are_left_out_where_they_are_not_wanted() {
    for (variable, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        for arg in ["--help", "--no-such-flag"] {
            let mut tool = Tool::new("vote").arg(arg);
            tool.command.env(variable, value).env_remove("CLICOLOR_FORCE");
            let run = tool.run();
            assert!(!run.err.contains('\u{1b}') && !run.text().contains('\u{1b}'));
        }
    }
}

/// The five flags that matter stand before all headings.
#[test]
fn help_begins_with_the_flags_that_matter() {
    for tool in tools() {
        let help = Tool::new(tool).arg("-h").ok();
        let (_, options) = help.text().split_once("\nOptions:\n").unwrap();
        let (first, rest) = options.split_once("\n\n").unwrap();
        let is_flag = |line: &&str| line.trim_start().starts_with("-") && line.find('-').is_some_and(|at| at < 8);
        let flags = first.lines().filter(is_flag).count();
        assert!((3..=7).contains(&flags), "{tool}: {flags} flags\n{first}"); // five, --help and --version
        says(rest, &["Common options:"]);
        if tool != "check" {
            says(first, &["--output"]);
        }
    }
}

#[test]
fn a_file_of_settings_has_an_end() {
    let dir = Dir::new();
    let error = dir.tool("vote").args(["x", "-o", "y", "--config", "/dev/zero"]).fails(2);
    says(&error, &["--config /dev/zero", "larger than"]);
}

#[cfg(feature = "nets")]
#[test]
fn a_launch_line_in_quotes_is_taken_apart() {
    for line in ["accelerate launch dpo/train.py --beta_dpo 1234", "accelerate launch ... --beta_dpo 1234"] {
        let run = Tool::new("train").args(["--print-config", line]).ok();
        says(run.text(), &["beta-dpo = 1234"]);
        assert!(!run.text().contains(line), "{}", run.text());
    }
}
