//! Weights, pictures, and the configurations of models.

use std::{
    collections::BTreeMap,
    fs,
    io::{Cursor, Write},
    path::{Path, PathBuf},
};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use nets::{
    conditioning::{Conditioning, TimeIds},
    denoiser::{Config, Denoiser},
    image::{self, Antialias, CLIP, Preprocess},
    lora::Adapters,
    process::Process,
    prompt::PromptEncoder,
    sampler::{GivenNoise, Noise, Sampling, Scheduler},
    scorer::{self, ModelFiles, Options, Picture},
    text_classifier::TextClassifier,
    vae::Vae,
    weights::{self, Weights},
    write,
};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::{fixture, put};

/// A safetensors file: a model's weights, a checkpoint's state, adapters, latents.
pub fn weights(folder: &Path, bytes: &[u8]) {
    let path = put(folder, "model.safetensors", bytes);
    let _ = weights::metadata(&path);
    let _ = Weights::open(&path).map(|weights| look_at(&weights));
    let _ = Adapters::open(&path);
    let _ = GivenNoise::open(&path).and_then(|noise| noise.check_steps(4));
}

/// A torch archive. Bytes that are no archive are taken for the pickle in one, beside a storage of 256 bytes.
pub fn pickle(folder: &Path, bytes: &[u8]) {
    let archive =
        if bytes.starts_with(b"PK") { bytes.to_vec() } else { archived(bytes).expect("an archive in memory") };
    let path = put(folder, "pytorch_model.bin", &archive);
    let _ = Weights::open(&path).map(|weights| look_at(&weights));
}

fn archived(pickle: &[u8]) -> Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [("archive/data.pkl", pickle), ("archive/byteorder", b"little"), ("archive/data/0", &[7; 256])]
    {
        zip.start_file(name, stored)?;
        zip.write_all(bytes)?;
    }
    Ok(zip.finish()?.into_inner())
}

fn look_at(weights: &Weights) {
    let _ = (weights.hash(), weights.origin());
    for name in weights.names() {
        let _ = (weights.dims(&name), weights.raw(&name), weights.get(&name, &[2, 2]));
    }
}

/// A picture, decoded and prepared for every network.
pub fn picture(_: &Path, bytes: &[u8]) {
    let preprocesses = [
        Preprocess::HfClip { size: 24, crop: 24, normalise: CLIP },
        Preprocess::Letterbox { size: 24, normalise: CLIP, antialias: Antialias::On },
        Preprocess::Letterbox { size: 24, normalise: CLIP, antialias: Antialias::Legacy },
    ];
    if let Ok(picture) = Picture::decode(bytes, &preprocesses) {
        let _ = image::dpo_train(&picture.rgb, 32);
    }
}

/// Any of a model's configurations: each kind of model, whole but for it, is opened and used.
pub fn config(folder: &Path, bytes: &[u8]) {
    let models = models(folder);
    for file in [
        "base/unet/config.json", "base/vae/config.json", "base/text_encoder/config.json",
        "base/scheduler/scheduler_config.json", "clip/config.json", "prepared/preprocessor_config.json",
        "open_clip/open_clip_config.json", "safe/config.json", "shards/diffusion_pytorch_model.safetensors.index.json",
    ] {
        put(&models, file, bytes);
    }
    let base = models.join("base");
    let _ = (denoise(&base.join("unet")), decode(&base.join("vae")), encode(&base), sample(&base));
    for (metric, tower) in [("pickscore", "clip"), ("clip-l", "prepared"), ("clip", "open_clip")] {
        let _ = score(metric, &models.join(tower));
    }
    let _ = TextClassifier::open(&models.join("safe"), &Device::Cpu).and_then(|model| model.logits(&["a cat"]));
    let _ = Weights::open(&models.join("shards")).map(|weights| look_at(&weights));
}

fn denoise(folder: &Path) -> Result<Tensor> {
    let denoiser = Denoiser::open(folder, DType::F32, &Device::Cpu)?;
    let Config { channels: [channels, _], side, widths, .. } = denoiser.config.clone();
    let side = if side <= 16 { side } else { 8 };
    let x = Tensor::zeros((1, channels, side, side), DType::F32, &Device::Cpu)?;
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let pooled = widths.pooled.map(|width| zeros(&[1, width])).transpose()?;
    let sizes = if pooled.is_some() { vec![TimeIds::whole(8, 8)] } else { vec![] };
    denoiser.predict(
        &x,
        &[7.0],
        &Conditioning::of_text(zeros(&[1, 4, widths.states])?, pooled).with_sizes(sizes).with_guidance(1.0)?,
    )
}

fn decode(folder: &Path) -> Result<Tensor> {
    let vae = Vae::open(folder, DType::F32, &Device::Cpu)?;
    let pixels = Tensor::zeros((1, 3, 16, 16), DType::F32, &Device::Cpu)?;
    let latents = vae.encode(&pixels)?.mean;
    Ok(vae.decode(&vae.to_latents(&latents)?)?)
}

fn encode(base: &Path) -> Result<Conditioning> {
    PromptEncoder::open(base, DType::F32, &Device::Cpu)?.encode(&["a cat", ""])
}

/// Every sampler, from start to end.
fn sample(base: &Path) -> Result<()> {
    let process = Process::open(base)?;
    for scheduler in [Scheduler::Ddim, Scheduler::Pndm, Scheduler::Dpmpp, Scheduler::Euler, Scheduler::EulerA] {
        let sampling = Sampling { scheduler: Some(scheduler), steps: 4, karras: false, spacing: None };
        let Ok(mut sampler) = sampling.sampler(&process, [2, 2]) else { continue };
        let noise = Noise::new(vec![1], 0..1, None)?;
        let mut x = noise.initial([1, 2, 2])?;
        for i in 0..sampler.timesteps().len() {
            let input = sampler.input(i, &x)?;
            x = sampler.step(i, &x, &input, &noise)?;
        }
    }
    Ok(())
}

fn score(metric: &str, tower: &Path) -> Result<()> {
    let options = Options { device: Device::Cpu, dtype: DType::F32, batch: 2, chosen: BTreeMap::new() };
    let files = ModelFiles { tower: tower.to_owned(), head: None };
    let scorer = (scorer::named(metric)?.open)(&files, &options)?;
    let picture = Picture::decode(&fs::read(fixture("preprocess/tiny.png"))?, scorer.preprocess.as_slice())?;
    scorer.image_features(&[&picture])?;
    scorer.caption_features(&["a cat"])?;
    Ok(())
}

/// The models whose configurations are tried, made once in `folder`.
fn models(folder: &Path) -> PathBuf {
    let models = folder.join("models");
    if !models.join("whole").exists() {
        make(&models).expect("small models");
        put(&models, "whole", b"");
    }
    models
}

fn make(models: &Path) -> Result<()> {
    for part in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        copy(&fixture("oracle/base").join(part), &models.join("base").join(part))?;
    }
    copy(&fixture("safe"), &models.join("safe"))?;
    for name in ["diffusion_pytorch_model-00001-of-00002", "diffusion_pytorch_model-00002-of-00002"] {
        let shard = format!("{name}.safetensors");
        put(models, &format!("shards/{shard}"), &fs::read(fixture("sample/sd21/unet").join(&shard))?);
    }
    for clip in ["clip", "prepared", "open_clip"] {
        copy(&fixture("oracle/base/tokenizer"), &models.join(clip))?;
    }
    for clip in ["clip", "prepared"] {
        write::tensors(&models.join(clip).join("model.safetensors"), &tensors(&hugging_face())?, BTreeMap::new())?;
        put(models, &format!("{clip}/config.json"), CLIP_CONFIG.as_bytes());
    }
    write::tensors(&models.join("open_clip/open_clip_model.safetensors"), &tensors(&open_clip())?, BTreeMap::new())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// A CLIP of one layer for each tower: width 8, images of 8 x 8 pixels in patches of 4, 610 tokens, 16 positions.
const CLIP_CONFIG: &str = r#"{"projection_dim": 4,
    "text_config": {"vocab_size": 610, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 16, "eos_token_id": 609},
    "vision_config": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4}}"#;

type Shapes = Vec<(String, Vec<usize>)>;

/// Its tensors as transformers names them.
fn hugging_face() -> Shapes {
    let mut all = Shapes::new();
    let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
    for (model, norms) in
        [("text_model", &["final_layer_norm"][..]), ("vision_model", &["pre_layrnorm", "post_layernorm"])]
    {
        let layer = format!("{model}.encoder.layers.0");
        let norms = norms.iter().map(|norm| format!("{model}.{norm}"));
        for norm in norms.chain([format!("{layer}.layer_norm1"), format!("{layer}.layer_norm2")]) {
            add(format!("{norm}.weight"), &[8]);
            add(format!("{norm}.bias"), &[8]);
        }
        let attention = ["q_proj", "k_proj", "v_proj", "out_proj"].map(|p| (format!("self_attn.{p}"), [8, 8]));
        for (part, [out, inner]) in
            attention.into_iter().chain([("mlp.fc1".into(), [16, 8]), ("mlp.fc2".into(), [8, 16])])
        {
            add(format!("{layer}.{part}.weight"), &[out, inner]);
            add(format!("{layer}.{part}.bias"), &[out]);
        }
    }
    add("text_model.embeddings.token_embedding.weight".into(), &[610, 8]);
    add("text_model.embeddings.position_embedding.weight".into(), &[16, 8]);
    add("vision_model.embeddings.class_embedding".into(), &[8]);
    add("vision_model.embeddings.patch_embedding.weight".into(), &[8, 3, 4, 4]);
    add("vision_model.embeddings.position_embedding.weight".into(), &[5, 8]);
    add("text_projection.weight".into(), &[4, 8]);
    add("visual_projection.weight".into(), &[4, 8]);
    all
}

/// The same as open_clip names them.
fn open_clip() -> Shapes {
    let mut all = Shapes::new();
    let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
    for (tower, norms) in [("", &["ln_final"][..]), ("visual.", &["visual.ln_pre", "visual.ln_post"])] {
        let block = format!("{tower}transformer.resblocks.0");
        let norms = norms.iter().map(|norm| norm.to_string());
        for norm in norms.chain([format!("{block}.ln_1"), format!("{block}.ln_2")]) {
            add(format!("{norm}.weight"), &[8]);
            add(format!("{norm}.bias"), &[8]);
        }
        add(format!("{block}.attn.in_proj_weight"), &[24, 8]);
        add(format!("{block}.attn.in_proj_bias"), &[24]);
        for (part, [out, inner]) in [("attn.out_proj", [8, 8]), ("mlp.c_fc", [16, 8]), ("mlp.c_proj", [8, 16])] {
            add(format!("{block}.{part}.weight"), &[out, inner]);
            add(format!("{block}.{part}.bias"), &[out]);
        }
    }
    add("token_embedding.weight".into(), &[610, 8]);
    add("positional_embedding".into(), &[16, 8]);
    add("text_projection".into(), &[8, 4]);
    add("visual.class_embedding".into(), &[8]);
    add("visual.conv1.weight".into(), &[8, 3, 4, 4]);
    add("visual.positional_embedding".into(), &[5, 8]);
    add("visual.proj".into(), &[8, 4]);
    all
}

/// Ones, of these shapes.
fn tensors(shapes: &Shapes) -> Result<BTreeMap<String, Tensor>> {
    let one =
        |(name, shape): &(String, Vec<usize>)| Ok((name.clone(), Tensor::ones(&shape[..], DType::F32, &Device::Cpu)?));
    shapes.iter().map(one).collect()
}
