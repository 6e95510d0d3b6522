//! The names of these transformers' tensors in the code of those who trained them, as their published files have them.

use super::MMDiTConfig;
use crate::names::{Names, Part};

/// In Stable Diffusion 3.
const SD3: [(&str, &str); 7] = [
    ("pos_embed.proj.", "x_embedder.proj."),
    ("time_text_embed.timestep_embedder.linear_1.", "t_embedder.mlp.0."),
    ("time_text_embed.timestep_embedder.linear_2.", "t_embedder.mlp.2."),
    ("time_text_embed.text_embedder.linear_1.", "y_embedder.mlp.0."),
    ("time_text_embed.text_embedder.linear_2.", "y_embedder.mlp.2."),
    ("context_embedder.", "context_embedder."),
    ("proj_out.", "final_layer.linear."),
];

/// In one of its blocks.
const SD3_BLOCK: [(&str, &str); 15] = [
    ("attn.norm_q.", "x_block.attn.ln_q."),
    ("attn.norm_k.", "x_block.attn.ln_k."),
    ("attn.norm_added_q.", "context_block.attn.ln_q."),
    ("attn.norm_added_k.", "context_block.attn.ln_k."),
    ("attn.to_out.0.", "x_block.attn.proj."),
    ("attn.to_add_out.", "context_block.attn.proj."),
    ("attn2.norm_q.", "x_block.attn2.ln_q."),
    ("attn2.norm_k.", "x_block.attn2.ln_k."),
    ("attn2.to_out.0.", "x_block.attn2.proj."),
    ("norm1.linear.", "x_block.adaLN_modulation.1."),
    ("norm1_context.linear.", "context_block.adaLN_modulation.1."),
    ("ff.net.0.proj.", "x_block.mlp.fc1."),
    ("ff.net.2.", "x_block.mlp.fc2."),
    ("ff_context.net.0.proj.", "context_block.mlp.fc1."),
    ("ff_context.net.2.", "context_block.mlp.fc2."),
];

/// In FLUX.1.
const FLUX: [(&str, &str); 9] = [
    ("time_text_embed.timestep_embedder.linear_1.", "time_in.in_layer."),
    ("time_text_embed.timestep_embedder.linear_2.", "time_in.out_layer."),
    ("time_text_embed.text_embedder.linear_1.", "vector_in.in_layer."),
    ("time_text_embed.text_embedder.linear_2.", "vector_in.out_layer."),
    ("time_text_embed.guidance_embedder.linear_1.", "guidance_in.in_layer."),
    ("time_text_embed.guidance_embedder.linear_2.", "guidance_in.out_layer."),
    ("context_embedder.", "txt_in."),
    ("x_embedder.", "img_in."),
    ("proj_out.", "final_layer.linear."),
];

/// In one of its double blocks.
const FLUX_BLOCK: [(&str, &str); 12] = [
    ("norm1.linear.", "img_mod.lin."),
    ("norm1_context.linear.", "txt_mod.lin."),
    ("attn.norm_q.weight", "img_attn.norm.query_norm.scale"),
    ("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
    ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
    ("attn.to_out.0.", "img_attn.proj."),
    ("attn.to_add_out.", "txt_attn.proj."),
    ("ff.net.0.proj.", "img_mlp.0."),
    ("ff.net.2.", "img_mlp.2."),
    ("ff_context.net.0.proj.", "txt_mlp.0."),
    ("ff_context.net.2.", "txt_mlp.2."),
];

/// In one of its single blocks.
const FLUX_SINGLE: [(&str, &str); 4] = [
    ("norm.linear.", "modulation.lin."),
    ("attn.norm_q.weight", "norm.query_norm.scale"),
    ("attn.norm_k.weight", "norm.key_norm.scale"),
    ("proj_out.", "linear2."),
];

const IMAGE: [&str; 3] = ["to_q", "to_k", "to_v"];
const TEXT: [&str; 3] = ["add_q_proj", "add_k_proj", "add_v_proj"];

impl MMDiTConfig {
    /// The names of its tensors in a model in one file.
    pub fn first_names(&self) -> Names {
        let mut names = Names::default();
        let thirds = |names: &mut Names, ours: &str, projections: [&str; 3], theirs: &str| {
            for (i, projection) in projections.into_iter().enumerate() {
                names.push(&format!("{ours}{projection}."), theirs, Part::third(i));
            }
        };
        let block = "transformer_blocks.#.";
        match self.is_flux() {
            true => {
                names.all(&FLUX, "", "");
                names.all(&FLUX_BLOCK, block, "double_blocks.#.");
                thirds(&mut names, "transformer_blocks.#.attn.", IMAGE, "double_blocks.#.img_attn.qkv.");
                thirds(&mut names, "transformer_blocks.#.attn.", TEXT, "double_blocks.#.txt_attn.qkv.");
                // Queries, keys, values and the feed-forward network's four widths in one matrix.
                let (ours, theirs) = ("single_transformer_blocks.#.", "single_blocks.#.");
                names.all(&FLUX_SINGLE, ours, theirs);
                for (i, projection) in ["attn.to_q.", "attn.to_k.", "attn.to_v.", "proj_mlp."].into_iter().enumerate() {
                    let part = Part::Rows { from: i, count: if i == 3 { 4 } else { 1 }, of: 7 };
                    names.push(&format!("{ours}{projection}"), &format!("{theirs}linear1."), part);
                }
            }
            false => {
                names.push("pos_embed.pos_embed", "pos_embed", Part::Whole);
                names.all(&SD3, "", "");
                // The last block gives the text scale and shift alone, which stand the other way round there.
                let last = self.joint.saturating_sub(1);
                names.push(
                    &format!("transformer_blocks.{last}.norm1_context.linear."),
                    &format!("joint_blocks.{last}.context_block.adaLN_modulation.1."),
                    Part::Exchanged,
                );
                names.all(&SD3_BLOCK, block, "joint_blocks.#.");
                thirds(&mut names, "transformer_blocks.#.attn.", IMAGE, "joint_blocks.#.x_block.attn.qkv.");
                thirds(&mut names, "transformer_blocks.#.attn.", TEXT, "joint_blocks.#.context_block.attn.qkv.");
                thirds(&mut names, "transformer_blocks.#.attn2.", IMAGE, "joint_blocks.#.x_block.attn2.qkv.");
            }
        }
        names.push("norm_out.linear.", "final_layer.adaLN_modulation.1.", Part::Exchanged);
        names
    }
}
