//! Every table of the pipeline. Column names are the contract between the tools; `common/FORMATS.md` describes them in prose.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema};

/// The columns of a pairs table (Pick-a-Pic's own) that we read.
pub mod pairs {
    /// The prompt of both images.
    pub const CAPTION: &str = "caption";
    /// Names of image 0 and image 1; an image may be in many pairs. Where a table has none, they are hashes of the images.
    pub const UID: [&str; 2] = ["image_0_uid", "image_1_uid"];
    /// JPEG, PNG or WebP bytes: binary, or a struct {bytes, path}.
    pub const JPG: [&str; 2] = ["jpg_0", "jpg_1"];
    /// Human preference for image 0 and image 1: 1, 0, or 0.5 for both where they tie.
    pub const LABEL: [&str; 2] = ["label_0", "label_1"];
    /// Optional: if it is false, people did not compare the images, and label_0 has no meaning.
    pub const HAS_LABEL: &str = "has_label";
    /// Optional: names of the models that drew the images.
    pub const MODEL: [&str; 2] = ["model_0", "model_1"];
    /// Optional: part of `pair_id` if the table has it.
    pub const RANKING_ID: &str = "ranking_id";
    /// Without these a table is not a pairs table.
    pub const NEEDED: [&str; 3] = [CAPTION, JPG[0], JPG[1]];
}

/// The columns of a prompts table.
pub mod prompts {
    pub const PROMPT_ID: &str = "prompt_id";
    pub const PROMPT: &str = "prompt";
    pub const SET: &str = "set";
    pub const CATEGORY: &str = "category";
    pub const CHALLENGE: &str = "challenge";
    pub const NSFW_PROB: &str = "nsfw_prob";
}

/// The columns of an images table besides the prompt's.
pub mod images {
    pub const IMAGE_UID: &str = "image_uid";
    pub const IMAGE: &str = "image";
    pub const K: &str = "k";
    pub const SEED: &str = "seed";
    pub const MODEL: &str = "model";
}

/// The columns of a labels table besides the pair's keys and the votes.
pub mod labels {
    pub const PAIR_ID: &str = "pair_id";
    pub const VOTES: &str = "votes";
    pub const VOTERS: &str = "voters";
    pub const TARGET: &str = "target";
    pub const WEIGHT: &str = "weight";
}

fn field(name: &str, data_type: DataType, nullable: bool) -> Field {
    Field::new(name, data_type, nullable)
}

/// The columns that name a pair, in scores and in labels.
fn pair_keys() -> Vec<Field> {
    vec![
        field(labels::PAIR_ID, DataType::Utf8, false),
        field(pairs::CAPTION, DataType::Utf8, false),
        field(pairs::UID[0], DataType::Utf8, false),
        field(pairs::UID[1], DataType::Utf8, false),
    ]
}

/// pairs: what `pairs` makes of other sources, with the columns of Pick-a-Pic's that it fills.
pub fn pairs() -> Schema {
    Schema::new(vec![
        field(pairs::CAPTION, DataType::Utf8, false),
        field(pairs::UID[0], DataType::Utf8, false),
        field(pairs::UID[1], DataType::Utf8, false),
        field(pairs::JPG[0], DataType::Binary, false),
        field(pairs::JPG[1], DataType::Binary, false),
        field(pairs::LABEL[0], DataType::Float32, true), // null if people did not compare the images
        field(pairs::LABEL[1], DataType::Float32, true),
        field(pairs::MODEL[0], DataType::Utf8, true),
        field(pairs::MODEL[1], DataType::Utf8, true),
        field(pairs::RANKING_ID, DataType::Utf8, true),
    ])
}

/// Pairs as TRL and open-image-preferences have them: the preferred image and the other one.
pub fn preferences() -> Schema {
    Schema::new(vec![
        field(prompts::PROMPT, DataType::Utf8, false),
        field("chosen", DataType::Binary, false),
        field("rejected", DataType::Binary, false),
    ])
}

/// The columns of a prompt, in prompts, images and scored tables.
fn prompt_columns() -> Vec<Field> {
    vec![
        field(prompts::PROMPT_ID, DataType::Utf8, false), // first 16 hex digits of SHA-256 of the text
        field(prompts::PROMPT, DataType::Utf8, false),
        field(prompts::SET, DataType::Utf8, true), // the benchmark or split that the prompt is from
        field(prompts::CATEGORY, DataType::Utf8, true),
        field(prompts::CHALLENGE, DataType::Utf8, true),
    ]
}

/// The columns of a sampled image without its pixels, in images and scored tables.
fn image_columns() -> Vec<Field> {
    let mut fields = prompt_columns();
    fields.extend([
        field(images::IMAGE_UID, DataType::Utf8, false), // hash of model, prompt and seed
        field(images::K, DataType::UInt32, false),       // which of the n images of this prompt
        field(images::SEED, DataType::UInt64, false),    // of the initial noise; the same for every model
        field(images::MODEL, DataType::Utf8, false),     // name of the UNet that drew it
    ]);
    fields
}

/// scores: what `score` makes of pairs. `m_0` and `m_1` are the raw score of image 0 and 1 under metric m; null if an
/// image could not be read (`--skip-bad`).
pub fn scores(metrics: &[String]) -> Schema {
    let mut fields = pair_keys();
    fields.push(field(pairs::LABEL[0], DataType::Float32, true)); // human preference, carried along
    for m in metrics {
        fields.push(field(&format!("{m}_0"), DataType::Float32, true));
        fields.push(field(&format!("{m}_1"), DataType::Float32, true));
    }
    Schema::new(fields)
}

/// Metadata of a column of scores: `judge` if its metric votes only where `--metrics` names it.
const ROLE: &str = "role";
const JUDGE: &str = "judge";

/// Marks the columns of metrics that judge and do not vote, in scores or scored tables.
pub fn with_judges(schema: Schema, judges: &[&str]) -> Schema {
    let mark = |field: &FieldRef| -> FieldRef {
        let name = field.name();
        let metric = name.strip_suffix("_0").or(name.strip_suffix("_1")).unwrap_or(name);
        match judges.contains(&metric) {
            true => Arc::new(Field::clone(field).with_metadata([(ROLE.to_owned(), JUDGE.to_owned())])),
            false => field.clone(),
        }
    };
    Schema::new(schema.fields().iter().map(mark).collect::<Vec<_>>())
}

pub fn is_judge(field: &Field) -> bool {
    field.metadata().get(ROLE).is_some_and(|role| role == JUDGE)
}

/// labels: what `vote` makes of scores. `label_0`/`label_1` are Pick-a-Pic's, so Diffusion-DPO trains on them unchanged.
pub fn labels(metrics: &[String]) -> Schema {
    let mut fields = pair_keys();
    for m in metrics {
        fields.push(field(&format!("vote_{m}"), DataType::Int8, false)); // 1: image 0, -1: image 1, 0: no vote
    }
    fields.extend([
        field(labels::VOTES, DataType::Int32, false),     // sum of the votes
        field(labels::VOTERS, DataType::Int32, false),    // metrics that voted 1 or -1
        field(labels::TARGET, DataType::Float32, false),  // probability that image 0 is preferred
        field(labels::WEIGHT, DataType::Float32, false),  // 0: the pair abstains
        field(pairs::LABEL[0], DataType::Float32, false), // 1, 0, or 0.5 where the pair abstains
        field(pairs::LABEL[1], DataType::Float32, false),
    ]);
    Schema::new(fields)
}

/// latents.parquet: what `encode` makes of each image. `mean` and `logvar` of the VAE's posterior, f16, unscaled, C x H x W
/// with the shape in the schema metadata as `latent_shape`; sizes and crop offsets in pixels.
pub fn latents() -> Schema {
    let posterior = || DataType::List(Field::new("item", DataType::Float16, false).into());
    Schema::new(vec![
        field(images::IMAGE_UID, DataType::Utf8, false),
        field("flipped", DataType::Boolean, false), // mirrored copies, for `--augment`
        field("mean", posterior(), false),
        field("logvar", posterior(), false),
        field("crop_top", DataType::Int32, false),
        field("crop_left", DataType::Int32, false),
        field("original_height", DataType::Int32, false),
        field("original_width", DataType::Int32, false),
    ])
}

/// captions.parquet: the text encoder's states of each caption, f16, T x D with the shape in the schema metadata as
/// `state_shape`, and in SDXL the pooled state, P as `pooled_shape`. The first row is the empty prompt.
pub fn captions(pooled: bool) -> Schema {
    let list = |name: &str| field(name, DataType::List(Field::new("item", DataType::Float16, false).into()), false);
    let mut fields = vec![field(pairs::CAPTION, DataType::Utf8, false), list("states")];
    fields.extend(pooled.then(|| list("pooled")));
    Schema::new(fields)
}

/// pairs.parquet: which images and captions belong together, so that `train` needs no images.
pub fn pair_list() -> Schema {
    Schema::new(pair_keys())
}

pub fn prompts() -> Schema {
    let mut fields = prompt_columns();
    fields.push(field(prompts::NSFW_PROB, DataType::Float32, true)); // null where no filter ran
    Schema::new(fields)
}

pub fn images() -> Schema {
    let mut fields = image_columns();
    fields.push(field(images::IMAGE, DataType::Binary, false)); // PNG
    Schema::new(fields)
}

/// scored: images without their pixels, plus one raw score per metric.
pub fn scored(metrics: &[String]) -> Schema {
    let mut fields = image_columns();
    fields.extend(metrics.iter().map(|m| field(m, DataType::Float32, true)));
    Schema::new(fields)
}
