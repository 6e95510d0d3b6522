//! `--safe`: a text classifier finds the prompts that are not safe for work, and they are left out.

use std::path::{Path, PathBuf};

use anyhow::Result;
use pipe::cli::{Hub, named};
use pipe::{device::Device, prompt_source::Prompt};

#[derive(clap::Args)]
#[command(next_help_heading = "Safe prompts")]
pub struct Safe {
    /// Leave out prompts that this classifier calls unsafe: a folder or hub id of a DistilBERT sequence classifier with a
    /// class NSFW (the paper's is michellejieli/inappropriate_text_classifier); the probabilities go to `nsfw_prob`
    #[arg(long, value_name = "DIR")]
    pub safe: Option<PathBuf>,
    /// Probability of NSFW above which a prompt is left out; the classifier itself decides at 0.5
    #[arg(long, value_name = "P", default_value_t = 0.5, requires = "safe")]
    pub threshold: f32,
    /// Download the classifier if it is a hub id (org/name[@revision]) that is not in the cache
    #[arg(long, requires = "safe")]
    pub allow_download: bool,
    /// The device that runs the classifier
    #[arg(long, default_value_t = Device::Cpu, value_parser = named::<Device>(), requires = "safe")]
    pub device: Device,
}

#[cfg_attr(not(feature = "nets"), allow(dead_code))] // without networks nothing is filtered
pub struct Filtered {
    /// Hash of the classifier's weights and vocabulary.
    pub model: String,
    pub dropped: usize,
    /// Prompts that were not classified, because `max` safe ones had been found.
    pub beyond_max: usize,
}

/// Prompts per batch; signals and the progress bar are served after each.
#[cfg(feature = "nets")]
const AT_ONCE: usize = 64;

/// Keeps the first `max` safe prompts, with their `nsfw_prob`.
#[cfg(feature = "nets")]
pub fn filter(prompts: &mut Vec<Prompt>, max: usize, folder: &Path, args: &Safe, quiet: bool) -> Result<Filtered> {
    nets::device::on_workers(|| keep_safe(prompts, max, folder, args, quiet))
}

#[cfg(feature = "nets")]
fn keep_safe(prompts: &mut Vec<Prompt>, max: usize, folder: &Path, args: &Safe, quiet: bool) -> Result<Filtered> {
    use anyhow::{Context, ensure};
    use nets::{device, hub, text_classifier::TextClassifier};
    use pipe::{progress, stop};

    ensure!((0.0..=1.0).contains(&args.threshold), "--threshold {} is not a probability", args.threshold);
    stop::watch_and_leave("prompts")?;
    let folder = Hub { allow_download: args.allow_download }.folder(folder, hub::resolve)?;
    let context = || format!("--safe {}", folder.display());
    let model = TextClassifier::open(&folder, &device::open(args.device)?).with_context(context)?;
    let nsfw = model.labels.iter().position(|l| l.eq_ignore_ascii_case("nsfw")).with_context(|| {
        format!("{}: none of its classes is NSFW (id2label in config.json has {})", context(), model.labels.join(", "))
    })?;
    let bar = progress::bar("prompts", Some(prompts.len() as u64), quiet);
    let (mut kept, mut seen) = (vec![], 0);
    for some in prompts.chunks(AT_ONCE) {
        let texts: Vec<&str> = some.iter().map(|p| &p.prompt[..]).collect();
        let probabilities = model.probabilities(&texts, nsfw).with_context(context)?;
        for (prompt, p) in some.iter().zip(probabilities) {
            if kept.len() < max {
                seen += 1;
                kept.extend((p <= args.threshold).then(|| Prompt { nsfw_prob: Some(p), ..prompt.clone() }));
            }
        }
        if kept.len() == max {
            break;
        }
        bar.inc(some.len() as u64);
        stop::check()?;
    }
    bar.finish_and_clear();
    stop::unwatch()?;
    let (dropped, beyond_max) = (seen - kept.len(), prompts.len() - seen);
    *prompts = kept;
    Ok(Filtered { model: model.hash, dropped, beyond_max })
}

/// Refuses always: this build has no networks.
#[cfg(not(feature = "nets"))]
pub fn filter(_: &mut Vec<Prompt>, _: usize, _: &Path, _: &Safe, _: bool) -> Result<Filtered> {
    anyhow::bail!("--safe runs a network, and this build has none; build with the default features")
}
