//! The model card: what a policy is, in Markdown with the front matter of Hugging Face's hub, as its weights and the comparisons say it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nets::folder;
use nets::weights::{self, Weights};
use pipe::origin::Origin;
use pipe::place;
use pipe::winrates::{Side, Winrates};
use serde_json::{Map, Value};

use crate::origins::words;
use crate::table::{interval, list, percent};
use crate::winrates;

#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Model card")]
pub struct CardFlags {
    /// Where to write a model card (README.md) of --policy, with the --winrates and the --sheet of this command
    #[arg(long, value_name = "PATH", requires = "policy")]
    pub card: Option<PathBuf>,
    /// Checkpoint folder that the card is about
    #[arg(long, value_name = "DIR", requires = "card")]
    policy: Option<PathBuf>,
    /// Hub id of the model that was aligned, for the card
    #[arg(long, value_name = "ORG/NAME", requires = "card")]
    base_model: Option<String>,
}

/// The text of the card. `title`: its heading; `sheet`: the contact sheet beside it.
pub fn markdown(flags: &CardFlags, title: Option<&str>, files: &[PathBuf], sheet: Option<&Path>) -> Result<String> {
    let policy = flags.policy.as_deref().unwrap_or(Path::new("."));
    ensure!(!policy.is_file(), "--policy {}: a card is made of the folder that `train` wrote", policy.display());
    let adapters = folder::adapters(policy);
    let weights = match &adapters {
        Some(file) => Weights::open(file)?,
        None => Weights::open(&folder::denoiser(policy)?)?,
    };
    let network = Network::of(policy);
    let origin = weights.origin();
    let origin =
        origin.with_context(|| format!("{} does not say how it was made: `train` did not write it", weights.name))?;
    for file in weights.files() {
        weights::check(file)?;
    }
    let name = policy.file_name().map_or_else(|| "policy".into(), |name| name.to_string_lossy().into_owned());
    let results = files.iter().map(|path| winrates::read(path)).collect::<Result<Vec<_>>>()?;
    let lora = adapters.is_some();

    let mut card = front_matter(flags.base_model.as_deref(), lora);
    let base = flags.base_model.as_deref().unwrap_or("a diffusion model");
    let what = if lora { "LoRA adapters for".to_owned() } else { format!("The {} of", network.name) };
    writeln!(card, "# {}\n", title.unwrap_or(&name))?;
    writeln!(card, "{what} {base}, aligned with preferences by balanced-dpo. {}\n", voters(&origin))?;
    card += &usage(flags.base_model.as_deref(), lora, &network);
    if let Some(sheet) = sheet {
        let link = sheet.to_string_lossy().replace(' ', "%20");
        writeln!(card, "## Images\n\n![The same prompts drawn by each model]({link})\n")?;
    }
    results.iter().try_for_each(|file| rates(&mut card, file))?;
    writeln!(card, "## Training\n\n{}", settings(&origin.args))?;
    writeln!(card, "## Data and votes\n\n{}", chain(&origin))?;
    writeln!(
        card,
        "## Provenance\n\nThe metadata key `origin` of the weights, which has the hashes of all models and inputs:\n"
    )?;
    writeln!(card, "```json\n{}\n```", serde_json::to_string_pretty(&origin)?)?;
    Ok(card)
}

/// What the hub reads. The licence is the user's to choose: it depends on the base's and on the data's.
fn front_matter(base: Option<&str>, lora: bool) -> String {
    let base = base.map_or("# base_model: the hub id of the base".to_owned(), |base| format!("base_model: {base}"));
    let tags = ["text-to-image", "stable-diffusion", "diffusion-dpo", "balanced-dpo"]
        .into_iter()
        .chain(lora.then_some("lora"));
    let tags: Vec<_> = tags.map(|tag| format!("- {tag}")).collect();
    format!(
        "---\n{base}\nlibrary_name: diffusers\npipeline_tag: text-to-image\nlicense: other\nlicense_name: to-be-chosen # that of the \
         base and of the data\ntags:\n{}\n---\n\n",
        tags.join("\n")
    )
}

/// The network that was trained: the folder of a checkpoint and the class in diffusers.
struct Network {
    part: &'static str,
    name: &'static str,
    class: String,
}

impl Network {
    fn of(policy: &Path) -> Self {
        let part = folder::DENOISERS.into_iter().find(|part| policy.join(part).is_dir()).unwrap_or(folder::DENOISER);
        let text = nets::json::text(&policy.join(part).join("config.json")).unwrap_or_default();
        let config: Value = serde_json::from_str(&text).unwrap_or_default();
        let class = config.get("_class_name").and_then(Value::as_str).unwrap_or("UNet2DConditionModel").to_owned();
        Self { part, name: if part == folder::DENOISER { "UNet" } else { part }, class }
    }
}

fn usage(base: Option<&str>, lora: bool, network: &Network) -> String {
    let Network { part, class, .. } = network;
    let base = base.unwrap_or("BASE");
    let body = match lora {
        true => format!(
            "pipe = DiffusionPipeline.from_pretrained(\"{base}\")\npipe.load_lora_weights(\"THIS_FOLDER/lora\")\n"
        ),
        false => format!(
            "{part} = {class}.from_pretrained(\"THIS_FOLDER\", subfolder=\"{part}\")\n\
             pipe = DiffusionPipeline.from_pretrained(\"{base}\", {part}={part})\n"
        ),
    };
    let classes = if lora { "DiffusionPipeline".into() } else { format!("DiffusionPipeline, {class}") };
    format!(
        "## Use\n\n```python\nfrom diffusers import {classes}\n{body}image = pipe(\"a fox in the snow\").images[0]\n```\n\n"
    )
}

/// Who decided the labels.
fn voters(origin: &Origin) -> String {
    let vote = origin.chain().into_iter().find(|origin| origin.tool == "vote");
    let Some(vote) = vote else { return "Its labels are not known.".into() };
    let Some(rule) = vote.args.get("rule").map(words) else {
        return "Its labels follow the Pareto fronts of each prompt's images.".into();
    };
    match vote.args.get("metrics").and_then(Value::as_array) {
        Some(metrics) if !metrics.is_empty() => {
            let metrics: Vec<String> = metrics.iter().map(words).collect();
            format!("Its labels follow the rule `{rule}` over {}.", list(&metrics))
        }
        _ => format!("Its labels follow the rule `{rule}`."),
    }
}

/// Win rates over all prompts, a table for each file.
fn rates(card: &mut String, file: &Winrates) -> Result<()> {
    let rows: Vec<_> =
        file.comparisons.iter().map(winrates::all).chain(file.seeds.iter().map(winrates::pooled)).collect();
    let joint = rows.iter().any(|row| row.joint.is_some());
    writeln!(
        card,
        "## Win rates\n\nOn what share of the prompts the best of {} images scores higher, with 95 % intervals. **Bold**: ahead or \
         behind by more than noise (exact sign test, Holm's correction).{}\n",
        file.best_of,
        if joint { " \"All better\", \"all worse\": on what share all metrics at once are." } else { "" }
    )?;
    let metric = |name: &String| if file.held_out.contains(name) { format!("{name} (held out)") } else { name.clone() };
    let mut header: Vec<_> = file.metrics.iter().map(metric).collect();
    header.extend(["all better", "all worse"].iter().filter(|_| joint).map(ToString::to_string));
    writeln!(card, "| | prompts | {} |\n|---|---|{}", header.join(" | "), "---|".repeat(header.len()))?;
    for row in rows {
        let shown = |[rate, low, high]: [f64; 3]| format!("{} {}", percent(rate), interval(low, high));
        let mut cells: Vec<String> = file
            .metrics
            .iter()
            .map(|metric| {
                let cell = &row.cells[metric.as_str()];
                let text = shown(cell.rate);
                let decided = matches!(cell.winner(), Some(Side::A | Side::B));
                if decided { format!("**{text}**") } else { text }
            })
            .collect();
        cells.extend(row.joint.into_iter().flatten().map(shown));
        writeln!(card, "| {} vs {} | {} | {} |", escaped(row.a), escaped(row.b), row.n, cells.join(" | "))?;
    }
    card.push('\n');
    Ok(())
}

fn settings(args: &Map<String, Value>) -> String {
    let rows = args.iter().filter(|(_, value)| !value.is_null());
    let rows: String = rows.map(|(name, value)| format!("| `{name}` | {} |\n", escaped(&setting(value)))).collect();
    format!("| setting | value |\n|---|---|\n{rows}")
}

/// A value as a person writes it.
fn setting(value: &Value) -> String {
    match value {
        // 5000, not 5000.0, and 1e-8, not 0.00000001.
        Value::Number(number) => match number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e15) {
            Some(whole) => whole.to_string(),
            None => number.to_string(),
        },
        Value::Object(parts) => {
            let parts: Vec<_> = parts.iter().filter(|(_, value)| !value.is_null()).collect();
            let parts: Vec<_> = parts.iter().map(|(name, value)| format!("{name} {}", setting(value))).collect();
            parts.join(", ")
        }
        _ => words(value),
    }
}

/// What made the inputs of the policy, the nearest first, each once.
fn chain(origin: &Origin) -> String {
    let mut lines: Vec<String> = vec![];
    for made in origin.chain().into_iter().skip(1) {
        let args = made.args.iter().filter(|(_, value)| !value.is_null());
        let args: Vec<_> = args.map(|(name, value)| format!("{name} {}", words(value))).collect();
        let models: Vec<_> = made.models.keys().map(String::as_str).collect();
        let models = if models.is_empty() { String::new() } else { format!("; models: {}", list(&models)) };
        let line = format!("- `{}` {}: {}{models}", made.tool, made.version, escaped(&args.join(", ")));
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if lines.is_empty() { "The inputs do not say how they were made.\n".into() } else { lines.join("\n") + "\n" }
}

/// A text in a cell of a table.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// The path of the contact sheet from the card's folder. `None`: it lies elsewhere, where the hub would not find it.
pub fn link(card: &Path, sheet: &Path) -> Option<PathBuf> {
    let (to, from) = (place::folder_of(sheet).canonicalize().ok()?, place::folder_of(card).canonicalize().ok()?);
    let inside = to.strip_prefix(from).ok().filter(|_| sheet.as_os_str() != "-" && card.as_os_str() != "-")?;
    Some(inside.join(sheet.file_name()?))
}
