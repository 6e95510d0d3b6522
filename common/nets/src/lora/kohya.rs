//! Adapters under the names of kohya's scripts.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{Device, Tensor};

use super::adapter::{Adapter, LoraConfig, modules};

/// Whose names a UNet's modules have in kohya's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Stable Diffusion: diffusers' names.
    Diffusers,
    /// SDXL: the names of its first code, in which the blocks are numbered consecutively: `down_blocks.1.attentions.0` is
    /// `input_blocks.4.1`.
    Sdxl { layers_per_block: usize },
}

/// The tensors of some adapters under kohya's names: `alpha`, `lora_down` (A) and `lora_up` (B) for each module.
pub(super) fn renamed(
    tensors: &BTreeMap<String, Tensor>,
    config: &LoraConfig,
    naming: Naming,
) -> Result<BTreeMap<String, Tensor>> {
    let mut all = BTreeMap::new();
    for module in modules(tensors.keys()) {
        let Adapter { a, b, .. } = Adapter::of(&module, tensors, config)?;
        let alpha = Tensor::new(config.alpha as f32, &Device::Cpu)?;
        let name = name(&module, naming);
        all.extend(
            [("alpha", alpha), ("lora_down.weight", a), ("lora_up.weight", b)]
                .map(|(part, tensor)| (format!("{name}.{part}"), tensor)),
        );
    }
    Ok(all)
}

/// kohya's name of a module, `lora_unet_down_blocks_...`.
pub(super) fn name(module: &str, naming: Naming) -> String {
    let name = match naming {
        Naming::Diffusers => module.to_owned(),
        Naming::Sdxl { layers_per_block } => sdxl_name(module, layers_per_block),
    };
    format!("lora_unet_{}", name.replace('.', "_"))
}

/// A module's name in SDXL's first code. `layers`: layers_per_block. A module that has no other name there keeps its own.
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
    let translate = |table: &[(&str, &str)], name: &str| {
        table.iter().find(|(ours, _)| *ours == name).map_or_else(|| name.to_owned(), |(_, theirs)| (*theirs).to_owned())
    };
    let inside = |kind: &str, rest: &str| match kind {
        "resnets" => translate(&IN_RESNETS, rest),
        _ => rest.to_owned(),
    };
    let number = |text: &str| text.parse::<usize>().ok();
    let parts: Vec<&str> = module.splitn(5, '.').collect();
    let translated = match parts[..] {
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
    translated.unwrap_or_else(|| translate(&OUTSIDE, module))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_stable_diffusion_are_diffusers_and_sdxl_numbers_its_blocks_consecutively() {
        let module = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0";
        let plain = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0";
        assert_eq!(name(module, Naming::Diffusers), plain);
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
            assert_eq!(name(ours, Naming::Sdxl { layers_per_block: 2 }), format!("lora_unet_{theirs}"));
        }
    }
}
