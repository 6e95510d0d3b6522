//! LoRA (Hu et al. 2021, Eq. 3): beside a frozen linear layer W a trained one of low rank, W x + (alpha / rank) B A x.
//!
//! Layers and tensors are named as PEFT names them, and files as diffusers and kohya's scripts do.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Result as Candle, Tensor, Var};
use pipe::seed;
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{self, Weights},
    params::Params,
    unet::UNetConfig,
};

/// What is adapted, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    pub rank: usize,
    pub alpha: f64,
    /// Module names, or their last parts: `to_q`, `ff.net.2`.
    pub targets: Vec<String>,
}

impl LoraConfig {
    /// alpha / rank
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// PEFT's rule: a module is adapted whose path is a target or ends in one.
    pub fn adapts(&self, module: &str) -> bool {
        self.targets.iter().any(|target| {
            module.strip_suffix(target.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    }
}

/// The trained part of one layer: A (rank, in) and B (out, rank); where the layer is stored as a 1x1 convolution, both have
/// two more dimensions.
pub struct Adapter {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f64,
}

impl Adapter {
    /// (alpha / rank) B A x
    pub fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        ops::linear(&ops::linear(x, &self.a, None)?, &self.b, None)? * self.scale
    }
}

/// A new layer's A and B: A normal with deviation 1/rank (diffusers' `init_lora_weights="gaussian"`), a function of the
/// module's name and `seed`; B zero, so that training begins at the base.
pub fn initial(module: &str, weight: &[usize], rank: usize, seed: u64, device: &Device) -> Result<(Var, Var)> {
    let (out, inner, spatial) = (weight[0], weight[1], &weight[2..]);
    let values = seed::draws(seed, "lora", module, 0).normals(rank * inner);
    let values: Vec<f32> = values.into_iter().map(|v| v / rank as f32).collect();
    let a = Tensor::from_vec(values, [&[rank, inner], spatial].concat(), device)?;
    Ok((Var::from_tensor(&a)?, Var::zeros([&[out, rank], spatial].concat(), DType::F32, device)?))
}

/// `down_blocks...to_q` -> the names of its A and B.
pub fn names(module: &str) -> [String; 2] {
    ["A", "B"].map(|which| format!("{module}.lora_{which}.weight"))
}

/// The modules that have adapters among these tensors.
pub fn modules<'a>(tensors: impl Iterator<Item = &'a String>) -> Vec<String> {
    tensors.filter_map(|name| name.strip_suffix(".lora_A.weight").map(str::to_owned)).collect()
}

/// What adapters add to a layer's weight, in the weight's own shape.
pub fn delta(a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let dims = [&[b.dim(0)?, a.dim(1)?], &a.dims()[2..]].concat();
    let product = b.flatten_from(1)?.matmul(&a.flatten_from(1)?)?; // (out, in)
    Ok((product * scale)?.reshape(dims)?)
}

/// The weight file that diffusers' `load_lora_weights` looks for.
pub const PEFT_FILE: &str = "pytorch_lora_weights.safetensors";
/// The same adapters under the names of kohya's scripts.
pub const KOHYA_FILE: &str = "kohya.safetensors";
/// diffusers' metadata key for rank and alpha.
const PEFT_KEY: &str = "lora_adapter_metadata";

/// Adapters as they lie in a file.
pub struct Adapters {
    pub config: LoraConfig,
    /// By name: `MODULE.lora_A.weight`, `MODULE.lora_B.weight`.
    pub tensors: BTreeMap<String, Tensor>,
    pub file: PathBuf,
}

/// The file of adapters in a checkpoint folder, in its `lora/`, or itself, if there is one.
pub fn find(path: &Path) -> Option<PathBuf> {
    let is_adapters = |p: &PathBuf| p.is_file() && p.file_name().is_some_and(|name| name == PEFT_FILE);
    [path.join("lora").join(PEFT_FILE), path.join(PEFT_FILE), path.to_owned()].into_iter().find(is_adapters)
}

impl Adapters {
    /// Reads what diffusers or `train` wrote. Without metadata alpha is the rank, as diffusers takes it.
    ///
    /// # Errors
    /// Damaged, or not adapters of a UNet.
    pub fn open(file: &Path) -> Result<Self> {
        let weights = Weights::open(file)?;
        let told: BTreeMap<String, serde_json::Value> = match checkpoint::metadata(file)?.get(PEFT_KEY) {
            Some(text) => serde_json::from_str(text)
                .with_context(|| format!("{}: the metadata key {PEFT_KEY} is no JSON object", file.display()))?,
            None => BTreeMap::new(),
        };
        let mut tensors = BTreeMap::new();
        for name in weights.names() {
            if let Some(inner) = name.strip_prefix("unet.") {
                tensors.insert(inner.to_owned(), weights.raw(&name)?.to_dtype(DType::F32)?);
            }
        }
        let modules = modules(tensors.keys());
        let first = modules.first().with_context(|| format!("{} holds no adapters of a UNet", file.display()))?;
        let rank = tensors[&names(first)[0]].dim(0)?;
        let alpha = told.get("unet.lora_alpha").and_then(|a| a.as_f64()).unwrap_or(rank as f64);
        for module in &modules {
            let [a, b] = names(module);
            let fits = tensors[&a].dim(0)? == rank && tensors.get(&b).is_some_and(|b| b.dims().get(1) == Some(&rank));
            ensure!(fits, "{}: module '{module}' has another rank than {rank}, or no B", file.display());
        }
        let targets: Option<Vec<String>> =
            told.get("unet.target_modules").and_then(|t| serde_json::from_value(t.clone()).ok());
        let config = LoraConfig { rank, alpha, targets: targets.unwrap_or(modules) };
        Ok(Self { config, tensors, file: file.to_owned() })
    }

    /// Copies the values into variables of the same names.
    ///
    /// # Errors
    /// Other modules, ranks or sizes.
    pub fn fill(&self, params: &Params) -> Result<()> {
        let name = self.file.display();
        for (module, var) in params {
            let tensor =
                self.tensors.get(module).with_context(|| format!("{name}: tensor 'unet.{module}' is missing"))?;
            let fits = tensor.dims() == var.dims();
            ensure!(fits, "{name}: 'unet.{module}' has shape {:?}, expected {:?}", tensor.dims(), var.dims());
            var.set(&tensor.to_device(var.device())?)?;
        }
        let other = self.tensors.keys().find(|n| !params.contains_key(*n));
        ensure!(other.is_none(), "{name} adapts '{}', which --lora-targets leaves out", other.map_or("", |n| n));
        Ok(())
    }
}

/// What kohya's scripts call a module: in Stable Diffusion as diffusers, in SDXL as the model's first code did, whose blocks are
/// numbered through, `down_blocks.1.attentions.0` as `input_blocks.4.1`.
pub fn kohya_name(module: &str, unet: &UNetConfig) -> String {
    let name = if unet.pooled_width().is_some() { sdxl_name(module, unet.layers_per_block) } else { module.to_owned() };
    format!("lora_unet_{}", name.replace('.', "_"))
}

/// `layers`: layers_per_block. What has no other name keeps its own.
fn sdxl_name(module: &str, layers: usize) -> String {
    const OUTSIDE: [(&str, &str); 6] = [
        ("conv_in", "input_blocks.0.0"),
        ("conv_out", "out.2"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
    ];
    const IN_RESNETS: [(&str, &str); 4] = [
        ("conv1", "in_layers.2"),
        ("time_emb_proj", "emb_layers.1"),
        ("conv2", "out_layers.3"),
        ("conv_shortcut", "skip_connection"),
    ];
    let other = |table: &[(&str, &str)], name: &str| {
        table.iter().find(|(ours, _)| *ours == name).map_or_else(|| name.to_owned(), |(_, theirs)| (*theirs).to_owned())
    };
    let inside = |kind: &str, rest: &str| if kind == "resnets" { other(&IN_RESNETS, rest) } else { rest.to_owned() };
    let parts: Vec<&str> = module.splitn(5, '.').collect();
    let number = |text: &str| text.parse::<usize>().ok();
    let named = match parts[..] {
        ["mid_block", kind, i, ..] => number(i).map(|i| {
            let rest = module.splitn(4, '.').nth(3).unwrap_or_default();
            let place = if kind == "resnets" { 2 * i } else { 2 * i + 1 };
            format!("middle_block.{place}.{}", inside(kind, rest))
        }),
        [blocks, block, kind, i, rest] => number(block).zip(number(i)).and_then(|(block, i)| {
            let at = block * (layers + 1);
            Some(match (blocks, kind) {
                ("down_blocks", "resnets") => format!("input_blocks.{}.0.{}", at + i + 1, inside(kind, rest)),
                ("down_blocks", "attentions") => format!("input_blocks.{}.1.{rest}", at + i + 1),
                ("down_blocks", "downsamplers") => format!("input_blocks.{}.0.op", at + layers + 1),
                ("up_blocks", "resnets") => format!("output_blocks.{}.0.{}", at + i, inside(kind, rest)),
                ("up_blocks", "attentions") => format!("output_blocks.{}.1.{rest}", at + i),
                ("up_blocks", "upsamplers") => format!("output_blocks.{}.2.{rest}", at + layers),
                _ => return None,
            })
        }),
        _ => None,
    };
    named.unwrap_or_else(|| other(&OUTSIDE, module))
}

/// Writes adapters of a UNet for diffusers (`PEFT_FILE`, with `origin` in its metadata) and for kohya's scripts (`KOHYA_FILE`).
pub fn write(
    folder: &Path,
    config: &LoraConfig,
    unet: &UNetConfig,
    tensors: &BTreeMap<String, Tensor>,
    origin: &pipe::origin::Origin,
) -> Result<()> {
    let of = |key: &str, value: serde_json::Value| (format!("unet.{key}"), value);
    let told: BTreeMap<String, serde_json::Value> = [
        of("lora_alpha", serde_json::json!(config.alpha)),
        of("peft_type", "LORA".into()),
        of("r", config.rank.into()),
        of("target_modules", serde_json::json!(config.targets)),
    ]
    .into();
    let origin = (pipe::origin::KEY.to_owned(), origin.to_json());
    let kohya: BTreeMap<String, Tensor> = modules(tensors.keys())
        .iter()
        .map(|module| {
            let [a, b] = names(module);
            let flat = kohya_name(module, unet);
            let alpha = Tensor::new(config.alpha as f32, &Device::Cpu)?;
            let (down, up) = (tensors[&a].clone(), tensors[&b].clone());
            Ok([("alpha", alpha), ("lora_down.weight", down), ("lora_up.weight", up)]
                .map(|(what, tensor)| (format!("{flat}.{what}"), tensor)))
        })
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();
    let plain = [("ss_network_alpha", config.alpha.to_string()), ("ss_network_dim", config.rank.to_string())];
    let metadata = plain.map(|(k, v)| (k.to_owned(), v)).into_iter().chain([origin.clone()]).collect();
    checkpoint::write(&folder.join(KOHYA_FILE), &kohya, metadata)?;
    let peft = tensors.iter().map(|(name, t)| (format!("unet.{name}"), t.clone())).collect();
    let told = (PEFT_KEY.to_owned(), serde_json::to_string(&told)?);
    checkpoint::write(&folder.join(PEFT_FILE), &peft, [origin, told].into())
}

/// All weights of a base with the adapters added to the layers they belong to.
///
/// # Errors
/// The base lacks a layer that is adapted.
pub fn merged(
    base: &Weights,
    config: &LoraConfig,
    adapters: &BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut all = BTreeMap::new();
    for name in base.names() {
        all.insert(name.clone(), base.raw(&name)?.to_dtype(DType::F32)?);
    }
    for module in modules(adapters.keys()) {
        let [a, b] = names(&module);
        let more = delta(&adapters[&a], &adapters[&b], config.scale())?.to_device(&Device::Cpu)?;
        let weight = all.get_mut(&format!("{module}.weight"));
        let weight = weight.with_context(|| format!("{}: tensor '{module}.weight' is missing", base.name))?;
        *weight = (&*weight + more.reshape(weight.dims())?)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_pefts() {
        let config = LoraConfig { rank: 4, alpha: 8.0, targets: vec!["to_q".into(), "ff.net.2".into()] };
        assert_eq!(config.scale(), 2.0);
        for module in ["a.attn1.to_q", "to_q", "x.ff.net.2"] {
            assert!(config.adapts(module), "{module}");
        }
        for module in ["a.not_to_q", "a.to_q.b", "x.ff.net.20", "net.2"] {
            assert!(!config.adapts(module), "{module}");
        }
    }

    #[test]
    fn kohya_numbers_the_blocks_of_sdxl_through() {
        let mut unet = UNetConfig::default();
        let module = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0";
        let plain = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0";
        assert_eq!(kohya_name(module, &unet), plain);
        unet.addition_embed_type = Some("text_time".into());
        unet.projection_class_embeddings_input_dim = Some(2816);
        for (ours, theirs) in [
            (module, "input_blocks_4_1_transformer_blocks_0_attn1_to_out_0"),
            ("down_blocks.1.attentions.1.proj_in", "input_blocks_5_1_proj_in"),
            (
                "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj",
                "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
            ),
            (
                "down_blocks.2.attentions.0.transformer_blocks.3.ff.net.2",
                "input_blocks_7_1_transformer_blocks_3_ff_net_2",
            ),
            (
                "mid_block.attentions.0.transformer_blocks.1.attn2.to_k",
                "middle_block_1_transformer_blocks_1_attn2_to_k",
            ),
            ("mid_block.attentions.0.proj_out", "middle_block_1_proj_out"),
            (
                "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
                "output_blocks_0_1_transformer_blocks_0_attn1_to_q",
            ),
            ("up_blocks.1.attentions.2.proj_out", "output_blocks_5_1_proj_out"),
            ("down_blocks.0.resnets.1.time_emb_proj", "input_blocks_2_0_emb_layers_1"),
            ("down_blocks.1.downsamplers.0.conv", "input_blocks_6_0_op"),
            ("mid_block.resnets.0.time_emb_proj", "middle_block_0_emb_layers_1"),
            ("mid_block.resnets.1.conv2", "middle_block_2_out_layers_3"),
            ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks_8_0_skip_connection"),
            ("up_blocks.1.upsamplers.0.conv", "output_blocks_5_2_conv"),
            ("time_embedding.linear_2", "time_embed_2"),
            ("add_embedding.linear_1", "label_emb_0_0"),
        ] {
            assert_eq!(kohya_name(ours, &unet), format!("lora_unet_{theirs}"));
        }
    }

    #[test]
    fn what_is_added_is_what_is_merged() {
        let (device, dims) = (Device::Cpu, [3, 2]);
        let (a, b) = initial("m", &dims, 2, 7, &device).unwrap();
        b.set(&Tensor::from_vec(vec![1f32, -2., 3., 4., 0.5, -1.], (3, 2), &device).unwrap()).unwrap();
        let x = Tensor::from_vec(vec![0.5f32, -1.5], (1, 2), &device).unwrap();
        let adapter = Adapter { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 0.5 };
        let one = adapter.forward(&x).unwrap().to_vec2::<f32>().unwrap();
        let two = ops::linear(&x, &delta(&a, &b, 0.5).unwrap(), None).unwrap().to_vec2::<f32>().unwrap();
        assert!(one[0].iter().zip(&two[0]).all(|(a, b)| (a - b).abs() < 1e-5), "{one:?} {two:?}");
        assert!(one[0].iter().any(|v| *v != 0.0));
    }
}
