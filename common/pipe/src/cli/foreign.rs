//! Flags that users of other programs type: Diffusion-DPO's, diffusers' and kohya's scripts, and other habits. Each is answered
//! by what to do instead, not by a guess at a flag that is spelled like it.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};

/// Flags separated by spaces, and what to do instead.
type Answers = &'static [(&'static str, &'static str)];

/// The answers of `train`.
const TRAIN: Answers = &[
    ("num-train-epochs max-train-epochs", "--max-train-steps sets the length of a run"),
    ("use-8bit-adam", "--moments bf16 halves AdamW's memory, --optimizer adafactor takes a quarter of it"),
    (
        "optimizer-type optimizer-args use-lion-optimizer",
        "--optimizer takes adamw or adafactor, and --adam-beta1 and the like set it up",
    ),
    (
        "use-ema ema-decay non-ema-revision offload-ema foreach-ema",
        "--reference-mode ema:RATE averages the reference; the policy is published as it is",
    ),
    ("random-crop center-crop", "images are always cropped in the middle: leave it out"),
    ("random-flip flip-aug", "--augment says which images are mirrored"),
    ("color-aug face-crop-aug-range image-interpolation-mode", "images are mirrored at most: leave it out"),
    (
        "enable-bucket min-bucket-reso max-bucket-reso bucket-reso-steps bucket-no-upscale",
        "all images have the size --resolution: leave it out",
    ),
    (
        "max-train-samples dataset-repeats",
        "`prompts` and `vote` make smaller tables, and --max-train-steps sets the length",
    ),
    (
        "enable-xformers-memory-efficient-attention xformers sdpa mem-eff-attn enable-npu-flash-attention torch-compile \
         dynamo-backend",
        "attention never holds all its scores at once, and nothing needs to be compiled: leave it out",
    ),
    ("train-method loss-type huber-c huber-schedule", "--loss names the loss, and `train --help` lists them"),
    (
        "train-data-dir instance-data-dir reg-data-dir in-json",
        "DATA names the tables themselves: pairs or images in Parquet files, or a folder of `encode`",
    ),
    ("dataset-config dataset-config-name", "DATA and --labels name the tables"),
    ("split dataset-split-name", "DATA names the files of the split themselves: leave it out"),
    ("image-column caption-column caption-extension", "columns have Pick-a-Pic's names, which FORMATS.md lists"),
    ("choice-model", "`score` and `vote --rule single:METRIC` make such labels, for --labels"),
    ("dreamlike-pairs-only", "name the pairs of those models alone as DATA"),
    ("remove-ties", "`vote` gives ties the weight 0, and such pairs are left out"),
    (
        "run-validation validation-steps validation-epochs sample-every-n-steps sample-every-n-epochs sample-at-first",
        "--sample-every N draws pictures while it trains, and --sample-models scores them",
    ),
    (
        "validation-prompt validation-prompts num-validation-images sample-prompts sample-sampler",
        "--sample-every N draws what --sample-prompt or --sample-prompts names",
    ),
    (
        "cache-latents cache-latents-to-disk vae-batch-size vae-encode-batch-size",
        "`encode` makes a folder of latents, which is then DATA",
    ),
    (
        "cache-text-encoder-outputs cache-text-encoder-outputs-to-disk",
        "`encode` stores them with the latents; its folder is then DATA",
    ),
    ("save-state", "checkpoints always hold it, in state/: leave it out"),
    ("save-every-n-steps save-every-n-epochs", "--checkpointing-steps N writes a checkpoint every N steps"),
    ("save-last-n-steps save-last-n-epochs", "--checkpoints-total-limit N keeps the newest N checkpoints"),
    (
        "save-precision save-model-as",
        "--save-dtype sets the numbers; the files are safetensors for diffusers and kohya's scripts",
    ),
    ("output-name", "-o names the folder, and the files in it have diffusers' names"),
    (
        "hard-skip-resume skip-until-initial-step initial-epoch",
        "a resumed run takes up the very next pair: leave it out",
    ),
    (
        "min-snr-gamma snr-gamma scale-v-pred-loss-like-noise-pred v-pred-like-loss debiased-estimation-loss dream-training",
        "--error sets the weights of timesteps",
    ),
    (
        "noise-offset input-perturbation multires-noise-iterations multires-noise-discount adaptive-noise-scale ip-noise-gamma",
        "noise is standard normal here, as in Diffusion-DPO: leave it out",
    ),
    (
        "prediction-type v-parameterization v2 rescale-betas-zero-snr zero-terminal-snr",
        "the base's scheduler_config.json says it, and --base-config names another for a model in one file: leave it out",
    ),
    (
        "is-turbo",
        "--timesteps turbo trains SDXL Turbo's timesteps; `auto` does so by itself for such a base: leave it out",
    ),
    ("min-timestep max-timestep", "--timesteps says which are trained"),
    (
        "lr-num-cycles lr-scheduler-num-cycles lr-power lr-scheduler-power lr-scheduler-args lr-scheduler-type",
        "--lr-scheduler takes constant, constant_with_warmup, linear and cosine, with --lr-warmup-steps and --lr-total-steps",
    ),
    ("unet-lr", "--learning-rate is that of the UNet"),
    (
        "train-text-encoder text-encoder-lr network-train-text-encoder-only learning-rate-te learning-rate-te1 \
         learning-rate-te2 stop-text-encoder-training clip-skip max-token-length weighted-captions",
        "text encoders are used as they are and are not trained",
    ),
    ("network-train-unet-only", "only the UNet is trained: leave it out"),
    ("lora use-lora network-dim network-rank lora-dim lora-r", "--lora-rank R trains adapters of rank R"),
    ("network-alpha", "--lora-alpha scales the adapters"),
    ("network-module network-args", "--lora-rank trains LoRA, and --lora-targets names its layers"),
    (
        "network-weights base-weights dim-from-weights",
        "--policy names a checkpoint folder with adapters, and --lora-rank their rank",
    ),
    ("network-dropout lora-dropout", "adapters are trained without dropout: leave it out"),
    ("scale-weight-norms", "adapters are not scaled down: leave it out"),
    ("lora-layers lora-blocks", "--lora-targets names the layers that are adapted"),
    (
        "clip-l clip-g t5xxl ae vae",
        "--base names a model as diffusers stores it, with its text encoders and its VAE; leave it out",
    ),
    (
        "timestep-sampling discrete-flow-shift training-shift sigmoid-scale model-prediction-type apply-t5-attn-mask",
        "--weighting-scheme draws the timesteps of a flow, and the base's scheduler_config.json says its shift",
    ),
    ("shuffle-caption keep-tokens caption-tag-dropout-rate", "captions are used as they are: leave it out"),
    ("caption-dropout-rate", "--proportion-empty-prompts drops captions"),
    ("prior-loss-weight prior-generation-precision masked-loss", "--loss has no such part: leave it out"),
    (
        "full-fp16 full-bf16 fp8-base no-half-vae upcast-vae",
        "weights, gradients and the VAE are f32; --dtype bf16 computes in bf16 on a GPU",
    ),
    (
        "lowram highvram offload-optimizer-device zero-stage deepspeed set-grads-to-none",
        "--gradient-checkpointing and --reference-weights file save memory; --dry-run prints what a run takes",
    ),
    (
        "max-data-loader-n-workers persistent-data-loader-workers",
        "--dataloader-num-workers sets the threads that read ahead",
    ),
    (
        "local-rank ddp-timeout ddp-gradient-as-bucket-view multi-gpu num-processes num-machines",
        "mpirun or srun starts the processes and numbers them: leave it out (pipelines/CLUSTER.md)",
    ),
    (
        "tracker-project-name tracker-name log-with log-prefix logging-dir wandb-api-key wandb-run-name wandb-project",
        "log.jsonl holds every number, and --report-to tensorboard writes event files in the output folder",
    ),
    (
        "training-comment metadata-title metadata-author metadata-description",
        "each file carries its `origin`: leave it out",
    ),
    ("logging-steps log-every", "log.jsonl has a line for every step: leave it out"),
];

/// The answers of `sample`.
const SAMPLE: Answers = &[
    (
        "prompt prompts from-file",
        "prompts come from a file or a pipe: echo 'a fox' | sample - --base sd15 -o fox.parquet",
    ),
    ("lora-path lora-weights network-weights", "--lora names a file of adapters"),
    ("lora-weight network-mul", "--lora-scale sets how strong the adapters are"),
    ("num-inference-steps ddim-steps num-steps", "--steps sets the sampling steps"),
    ("guidance-scale cfg-scale cfg scale", "--guidance sets the weight of the prompt"),
    ("negative-prompt", "--negative says what the images should not show"),
    ("num-images-per-prompt num-images n-samples n-iter images", "-n sets the images per prompt"),
    ("sampler sampler-name plms", "--scheduler names the sampler"),
    (
        "model model-id pretrained-model-name-or-path ckpt checkpoint",
        "--base names the model, --unet a trained checkpoint",
    ),
    ("policy", "--unet names the checkpoint that draws"),
    ("h w", "--height and --width are in pixels"),
    ("resolution", "--height and --width are in pixels"),
    ("safety-checker nsfw", "`prompts --safe` drops unsafe prompts; images are not checked"),
];

/// The answers of `score`, `encode`, `vote` and `winrate`.
const SCORE: Answers = &[
    ("metric", "--metrics names them, separated by commas"),
    ("model-name", "--model M=PATH names the model of a metric"),
];
const ENCODE: Answers = &[
    ("no-hflip random-flip flip-aug", "no mirrored images are stored unless --augment asks for them"),
    ("train-data-dir dataset-name", "the pairs tables are named without a flag"),
    ("vae pretrained-vae-model-name-or-path", "the VAE is that of --base"),
];
const VOTE: Answers = &[("metric", "--metrics names them, separated by commas")];
const WINRATE: Answers = &[
    ("n num-images", "--best-of sets the images per prompt that count"),
    ("bootstrap", "--resamples sets its resamples"),
];

/// The answers of every program that lacks the flag.
const ANY: Answers = &[
    ("device dtype mixed-precision fp16 bf16 half", "no network runs in this program: leave it out"),
    ("revision", "a hub id may end with it: org/name@revision"),
    ("variant use-safetensors", "the files of a model are found under each of their usual names: leave it out"),
    (
        "push-to-hub hub-token hub-model-id hub-private-repo huggingface-repo-id huggingface-token",
        "nothing is uploaded; `hf upload` does that",
    ),
    ("token use-auth-token", "the token is read where `hf auth login` leaves it, or from HF_TOKEN"),
    ("settings config-file", "--config names a file of settings, whose keys are the names of flags"),
    ("input inputs in data", "inputs are named without a flag"),
    ("out outdir out-dir output-file output-path save-path save-dir", "-o names the output"),
    ("overwrite force yes", "it is not needed: leave it out"),
    ("verbose debug log-level", "messages are printed unless -q is given: leave it out"),
    ("silent no-progress", "-q leaves out progress and summaries"),
    ("num-workers workers jobs n-jobs", "--threads sets the number of threads"),
    ("batch-size", "--batch sets it if it matters"),
    ("enable-xformers-memory-efficient-attention xformers", "it is not needed: leave it out"),
];

/// Answers of known flags to values of other programs.
const VALUES: Answers = &[
    ("report-to", "it takes `none` or `tensorboard`; log.jsonl holds the same numbers for any other tracker"),
    ("lr-scheduler", "it takes constant, constant_with_warmup, linear and cosine"),
    ("mixed-precision", "it takes `no`, or `bf16` on a GPU"),
    ("resolution", "it takes one number, because training images are square"),
    ("lr-warmup-steps", "it takes a number of steps, not a share of them"),
];

/// The answer of `tool` to a flag that it does not have.
pub(super) fn answer(tool: &str, flag: &str) -> Option<&'static str> {
    let ours = match tool {
        "train" => TRAIN,
        "sample" => SAMPLE,
        "score" => SCORE,
        "encode" => ENCODE,
        "vote" => VOTE,
        "winrate" => WINRATE,
        _ => &[],
    };
    look_up(ours, flag).or_else(|| look_up(ANY, flag))
}

/// The answer of a flag to values of other programs.
pub(super) fn other_value(flag: &str) -> Option<&'static str> {
    look_up(VALUES, flag)
}

fn look_up(table: Answers, flag: &str) -> Option<&'static str> {
    table.iter().find(|(flags, _)| flags.split(' ').any(|known| known == flag)).map(|(_, answer)| *answer)
}

/// `--max_steps=3` -> "max-steps".
pub(super) fn name_of(word: &str) -> Option<String> {
    Some(word.strip_prefix("--")?.split('=').next()?.to_lowercase().replace('_', "-"))
}

/// The answers, a line each, to the flags of `words` that `tool` does not have, or about the value of a flag that is not among
/// the possible ones. `None` if clap's own words are better.
pub fn sentences(tool: &str, command: &Command, error: &Error, words: &[String]) -> Option<Vec<String>> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
        _ => None,
    };
    let culprit = context(ContextKind::InvalidArg).filter(|word| word.starts_with('-'))?;
    match error.kind() {
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let flag = culprit.split(' ').next()?;
            let value = context(ContextKind::InvalidValue)?;
            if let Some(answer) = other_value(&name_of(flag).unwrap_or_default()) {
                return Some(vec![format!("{flag} {value}: {answer}")]);
            }
            // clap's words in one line.
            let text = error.render().to_string();
            let text = text.trim_start_matches("error: ").split("\n\nFor more").next()?;
            let text: Vec<_> = text.split_whitespace().collect();
            Some(vec![format!("{}; see `{tool} --help`", text.join(" "))])
        }
        ErrorKind::UnknownArgument => {
            let answer = |word: &str| answer(tool, &name_of(word)?);
            let mut said: Vec<String> = unknown(command, words)
                .filter_map(|word| Some((word.split('=').next()?, answer(word)?)))
                .map(|(flag, answer)| format!("{flag} is not a flag of `{tool}`: {answer}"))
                .collect();
            if answer(culprit).is_none() {
                let similar = context(ContextKind::SuggestedArg).map(|arg| arg.replace('_', "-"));
                // Names that only share letters, such as --revision and --version, mislead.
                let similar = similar.filter(|arg| arg.get(..4) == culprit.get(..4));
                let similar = similar.map_or(String::new(), |arg| format!("; a similar one is {arg}"));
                said.push(format!("{culprit} is not a flag of `{tool}`{similar}; `{tool} --help` lists all"));
            }
            Some(said)
        }
        _ => None,
    }
}

/// The words that look like flags and are none of the command's, but not the values of its flags.
fn unknown<'a>(command: &'a Command, words: &'a [String]) -> impl Iterator<Item = &'a String> {
    let mut is_value = false;
    words.iter().take_while(|word| *word != "--").filter(move |word| {
        let value = std::mem::replace(&mut is_value, false);
        let Some(name) = name_of(word).filter(|_| !value) else { return false };
        let known = command.get_arguments().find(|arg| {
            let names = arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten());
            names.into_iter().any(|known| known == name)
        });
        is_value = known.is_some_and(|arg| arg.get_action().takes_values() && !word.contains('='));
        known.is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_has_one_answer() {
        for table in [TRAIN, SAMPLE, SCORE, ENCODE, VOTE, WINRATE, ANY, VALUES] {
            let mut flags: Vec<_> = table.iter().flat_map(|(flags, _)| flags.split(' ')).collect();
            let all = flags.len();
            flags.sort_unstable();
            flags.dedup();
            assert_eq!(flags.len(), all);
            assert!(flags.iter().all(|flag| !flag.is_empty() && !flag.contains(['_', '='])));
        }
    }
}
