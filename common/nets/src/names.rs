//! The original names of tensors in Stable Diffusion and open_clip, and diffusers' and transformers' names of the same
//! tensors: one table, read in both directions.

/// The prefix of a UNet's tensors.
pub const UNET: &str = "model.diffusion_model.";

/// How one of our tensors lies in theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Whole,
    /// Rows from the `from`-th of `of` equal parts, `count` of them: q, k or v.
    Rows {
        from: usize,
        count: usize,
        of: usize,
    },
    /// The second half of the rows before the first: scale and shift.
    Exchanged,
    Transposed,
    /// Theirs is a convolution of one pixel, ours a matrix.
    Pixel,
}

impl Part {
    /// The `i`-th third of the rows.
    pub const fn third(i: usize) -> Self {
        Self::Rows { from: i, count: 1, of: 3 }
    }
}

/// Names of one network.
#[derive(Default)]
pub struct Names(Vec<Row>);

/// Beginnings of names. `#` stands for a number; what follows a beginning that ends with `.` or `_` is the same in both.
struct Row {
    ours: String,
    theirs: String,
    part: Part,
}

const RESNET: [(&str, &str); 6] = [
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("time_emb_proj.", "emb_layers.1."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("conv_shortcut.", "skip_connection."),
];

const OUTSIDE: [(&str, &str); 7] = [
    ("conv_in.", "input_blocks.0.0."),
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("add_embedding.linear_1.", "label_emb.0.0."),
    ("add_embedding.linear_2.", "label_emb.0.2."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2."),
];

/// One layer of a tower of open_clip.
const LAYER: [(&str, &str, Part); 8] = [
    ("layer_norm1.", "ln_1.", Part::Whole),
    ("layer_norm2.", "ln_2.", Part::Whole),
    ("self_attn.q_proj.", "attn.in_proj_", Part::third(0)),
    ("self_attn.k_proj.", "attn.in_proj_", Part::third(1)),
    ("self_attn.v_proj.", "attn.in_proj_", Part::third(2)),
    ("self_attn.out_proj.", "attn.out_proj.", Part::Whole),
    ("mlp.fc1.", "mlp.c_fc.", Part::Whole),
    ("mlp.fc2.", "mlp.c_proj.", Part::Whole),
];

const OPEN_CLIP_TEXT: [(&str, &str); 3] = [
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
];

const OPEN_CLIP_VISION: [(&str, &str); 5] = [
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."), // sic
    ("vision_model.post_layernorm.", "visual.ln_post."),
];

impl Names {
    /// Names for a UNet with `layers` resnets in each block on the way down. `attends`: which of these blocks attend to the text.
    pub fn unet(layers: usize, attends: &[bool]) -> Self {
        let mut names = Self(vec![]);
        names.all(&OUTSIDE, "", "");
        let levels = attends.len();
        for (level, &attends_here) in attends.iter().enumerate() {
            let at = level * (layers + 1);
            for layer in 0..layers {
                let n = at + layer + 1;
                names.all(&RESNET, &format!("down_blocks.{level}.resnets.{layer}."), &format!("input_blocks.{n}.0."));
                names.one(&format!("down_blocks.{level}.attentions.{layer}."), &format!("input_blocks.{n}.1."));
            }
            let n = at + layers + 1;
            names.one(&format!("down_blocks.{level}.downsamplers.0.conv."), &format!("input_blocks.{n}.0.op."));

            let level = levels - 1 - level; // on the way up
            let at = level * (layers + 1);
            // Before the attention, whose first part would be matched too.
            let place = if attends_here { 2 } else { 1 };
            let n = at + layers;
            names.one(&format!("up_blocks.{level}.upsamplers.0."), &format!("output_blocks.{n}.{place}."));
            for layer in 0..=layers {
                let n = at + layer;
                names.all(&RESNET, &format!("up_blocks.{level}.resnets.{layer}."), &format!("output_blocks.{n}.0."));
                if attends_here {
                    names.one(&format!("up_blocks.{level}.attentions.{layer}."), &format!("output_blocks.{n}.1."));
                }
            }
        }
        names.all(&RESNET, "mid_block.resnets.0.", "middle_block.0.");
        names.one("mid_block.attentions.0.", "middle_block.1.");
        names.all(&RESNET, "mid_block.resnets.1.", "middle_block.2.");
        names
    }

    /// Names for a VAE with `levels` levels.
    pub fn vae(levels: usize) -> Self {
        let mut names = Self(vec![]);
        for (ours, theirs, sampler) in [("down", "down", "downsample"), ("up", "up", "upsample")] {
            let side = if ours == "down" { "encoder" } else { "decoder" };
            for level in 0..levels {
                // The decoder's blocks are counted from the other end.
                let other = if ours == "down" { level } else { levels - 1 - level };
                let (ours, theirs) = (format!("{side}.{ours}_blocks.{level}"), format!("{side}.{theirs}.{other}"));
                names.one(&format!("{ours}.resnets.#.conv_shortcut."), &format!("{theirs}.block.#.nin_shortcut."));
                names.one(&format!("{ours}.resnets.#."), &format!("{theirs}.block.#."));
                names.one(&format!("{ours}.{sampler}rs.0."), &format!("{theirs}.{sampler}."));
            }
            names.one(&format!("{side}.mid_block.resnets.0."), &format!("{side}.mid.block_1."));
            names.one(&format!("{side}.mid_block.resnets.1."), &format!("{side}.mid.block_2."));
            names.one(&format!("{side}.mid_block.attentions.0.group_norm."), &format!("{side}.mid.attn_1.norm."));
            for (ours, theirs) in [("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")] {
                let (ours, theirs) =
                    (format!("{side}.mid_block.attentions.0.{ours}."), format!("{side}.mid.attn_1.{theirs}."));
                names.push(&format!("{ours}weight"), &format!("{theirs}weight"), Part::Pixel);
                names.one(&ours, &theirs);
            }
            names.one(&format!("{side}.conv_norm_out."), &format!("{side}.norm_out."));
            names.one(&format!("{side}.conv_"), &format!("{side}.conv_")); // in and out
        }
        names.one("quant_conv.", "quant_conv.");
        names.one("post_quant_conv.", "post_quant_conv.");
        names
    }

    /// Names for OpenAI's text tower, which has transformers' names everywhere.
    pub fn clip() -> Self {
        let mut names = Self(vec![]);
        // Some leave `text_model.` out.
        for theirs in ["text_model.", ""] {
            for part in
                ["embeddings.token_embedding.", "embeddings.position_embedding.", "encoder.", "final_layer_norm."]
            {
                names.one(&format!("text_model.{part}"), &format!("{theirs}{part}"));
            }
        }
        names.one("text_projection.", "text_projection."); // where it lies beside the tower
        names
    }

    /// Names for T5, which has transformers' names everywhere.
    pub fn t5() -> Self {
        let mut names = Self(vec![]);
        names.one("shared.", "shared.");
        names.one("encoder.", "encoder.");
        names
    }

    /// Names for open_clip's text tower, with or without its projection.
    pub fn open_clip_text(projection: bool) -> Self {
        let mut names = Self(vec![]);
        names.all(&OPEN_CLIP_TEXT, "", "");
        names.layers("text_model", "transformer");
        if projection {
            names.push("text_projection.weight", "text_projection", Part::Transposed); // `x @ P` -> `x W^T`
        }
        names
    }

    /// Names for both towers of open_clip.
    pub fn open_clip() -> Self {
        let mut names = Self::open_clip_text(true);
        names.all(&OPEN_CLIP_VISION, "", "");
        names.layers("vision_model", "visual.transformer");
        names.push("visual_projection.weight", "visual.proj", Part::Transposed);
        names
    }

    fn layers(&mut self, ours: &str, theirs: &str) {
        for (our_part, their_part, part) in LAYER {
            self.push(
                &format!("{ours}.encoder.layers.#.{our_part}"),
                &format!("{theirs}.resblocks.#.{their_part}"),
                part,
            );
        }
    }

    /// Beginnings of names after `ours` and `theirs`.
    pub fn all(&mut self, table: &[(&str, &str)], ours: &str, theirs: &str) {
        for (our_part, their_part) in table {
            self.one(&format!("{ours}{our_part}"), &format!("{theirs}{their_part}"));
        }
    }

    pub fn one(&mut self, ours: &str, theirs: &str) {
        self.push(ours, theirs, Part::Whole);
    }

    pub fn push(&mut self, ours: &str, theirs: &str, part: Part) {
        self.0.push(Row { ours: ours.to_owned(), theirs: theirs.to_owned(), part });
    }

    /// Our names for the tensor that they call `name`, and which part of it each is: three for q, k and v together.
    pub fn ours(&self, name: &str) -> Vec<(String, Part)> {
        let mut found = self.0.iter().filter_map(|row| Some((rewritten(name, &row.theirs, &row.ours)?, row.part)));
        match found.next() {
            Some((name, part @ Part::Rows { .. })) => {
                [(name, part)].into_iter().chain(found.filter(|(_, p)| matches!(p, Part::Rows { .. }))).collect()
            }
            first => first.into_iter().collect(),
        }
    }

    /// Their name for the tensor that we call `name`, and which part of it that is.
    pub fn theirs(&self, name: &str) -> Option<(String, Part)> {
        self.0.iter().find_map(|row| Some((rewritten(name, &row.ours, &row.theirs)?, row.part)))
    }
}

/// `name`, which begins with `from`, with the beginning `to`.
fn rewritten(name: &str, from: &str, to: &str) -> Option<String> {
    let mut rest = name;
    let mut out = String::new();
    let mut to = to.split('#');
    for (i, piece) in from.split('#').enumerate() {
        if i > 0 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            if number.is_empty() {
                return None;
            }
            out.push_str(number);
            rest = after;
        }
        rest = rest.strip_prefix(piece)?;
        out.push_str(to.next()?);
    }
    let whole = !from.ends_with(['.', '_']);
    (!whole || rest.is_empty()).then(|| out + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_numbered_as_in_the_first_code_and_back() {
        let (v1, xl) = (Names::unet(2, &[true, true, true, false]), Names::unet(2, &[false, true, true]));
        let (vae, text) = (Names::vae(4), Names::open_clip_text(true));
        for (names, ours, theirs) in [
            (&v1, "conv_in.weight", "input_blocks.0.0.weight"),
            (&v1, "down_blocks.0.downsamplers.0.conv.bias", "input_blocks.3.0.op.bias"),
            (&v1, "down_blocks.3.resnets.1.conv_shortcut.bias", "input_blocks.11.0.skip_connection.bias"),
            (&v1, "up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.1.conv.bias"),
            (&v1, "up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"),
            (&v1, "up_blocks.3.attentions.2.proj_out.bias", "output_blocks.11.1.proj_out.bias"),
            (&xl, "add_embedding.linear_2.bias", "label_emb.0.2.bias"),
            (&xl, "up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.2.conv.bias"),
            (&xl, "up_blocks.2.resnets.2.time_emb_proj.bias", "output_blocks.8.0.emb_layers.1.bias"),
            (&xl, "mid_block.attentions.0.norm.bias", "middle_block.1.norm.bias"),
            (&vae, "decoder.up_blocks.0.resnets.2.norm1.bias", "decoder.up.3.block.2.norm1.bias"),
            (&vae, "encoder.down_blocks.1.resnets.0.conv_shortcut.bias", "encoder.down.1.block.0.nin_shortcut.bias"),
            (&vae, "encoder.mid_block.attentions.0.to_out.0.bias", "encoder.mid.attn_1.proj_out.bias"),
            (&vae, "decoder.conv_norm_out.bias", "decoder.norm_out.bias"),
            (&vae, "decoder.conv_out.bias", "decoder.conv_out.bias"),
            (&text, "text_model.encoder.layers.11.mlp.fc1.bias", "transformer.resblocks.11.mlp.c_fc.bias"),
            (&text, "text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ] {
            assert_eq!(names.theirs(ours), Some((theirs.to_owned(), Part::Whole)), "{ours}");
            assert_eq!(names.ours(theirs), [(ours.to_owned(), Part::Whole)], "{theirs}");
        }
        let three = text.ours("transformer.resblocks.3.attn.in_proj_bias");
        assert_eq!(three[1], ("text_model.encoder.layers.3.self_attn.k_proj.bias".to_owned(), Part::third(1)));
        assert_eq!(three.len(), 3);
        assert_eq!(text.theirs(&three[2].0).unwrap().1, Part::third(2));
        for unknown in ["logit_scale", "input_blocks.x.0.weight", "positional_embedding.weight"] {
            assert!(v1.ours(unknown).is_empty() && text.ours(unknown).is_empty(), "{unknown}");
        }
    }
}
