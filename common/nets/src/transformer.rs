//! The pre-norm transformer that CLIP's text and image towers share.

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};
use ops::Mask;

use crate::layers::{Frozen, LayerNorm};
use crate::loader::Loader;

pipe::names! {
    /// `hidden_act` of the config.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
    #[serde(try_from = "String")]
    pub enum HiddenAct {
        QuickGelu = "quick_gelu",
        Gelu = "gelu",
    }
}

impl HiddenAct {
    fn apply(self, x: &Tensor) -> Candle<Tensor> {
        match self {
            HiddenAct::QuickGelu => ops::quick_gelu(x),
            HiddenAct::Gelu => ops::gelu(x),
        }
    }
}

/// Sizes of a tower.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub width: usize,
    pub mlp: usize,
    pub layers: usize,
    pub heads: usize,
    pub act: HiddenAct,
    pub eps: f64,
}

struct Layer {
    layer_norm1: LayerNorm,
    q_proj: Frozen,
    k_proj: Frozen,
    v_proj: Frozen,
    out_proj: Frozen,
    layer_norm2: LayerNorm,
    fc1: Frozen,
    fc2: Frozen,
}

pub struct Encoder {
    layers: Vec<Layer>,
    shape: Shape,
}

impl Encoder {
    /// `p` at the tower's `encoder`.
    pub fn load(p: Loader, shape: Shape) -> Result<Self> {
        let w = shape.width;
        let divides = shape.heads > 0 && w.is_multiple_of(shape.heads);
        ensure!(divides, "width {w} does not divide into {} heads", shape.heads);
        let layers = (0..shape.layers).map(|i| {
            let p = p.pp("layers").pp(i);
            let a = p.pp("self_attn");
            Ok(Layer {
                layer_norm1: LayerNorm::load(p.pp("layer_norm1"), w, shape.eps)?,
                q_proj: Frozen::load(a.pp("q_proj"), w, w)?,
                k_proj: Frozen::load(a.pp("k_proj"), w, w)?,
                v_proj: Frozen::load(a.pp("v_proj"), w, w)?,
                out_proj: Frozen::load(a.pp("out_proj"), w, w)?,
                layer_norm2: LayerNorm::load(p.pp("layer_norm2"), w, shape.eps)?,
                fc1: Frozen::load(p.pp("mlp.fc1"), w, shape.mlp)?,
                fc2: Frozen::load(p.pp("mlp.fc2"), shape.mlp, w)?,
            })
        });
        Ok(Self { layers: layers.collect::<Result<_>>()?, shape })
    }

    /// `x` (B, N, width) -> the input and the hidden states after each layer, each (B, N, width).
    pub fn hidden_states(&self, x: &Tensor, mask: Mask) -> Candle<Vec<Tensor>> {
        let mut states = vec![x.clone()];
        for layer in &self.layers {
            states.push(self.layer(layer, &states[states.len() - 1], mask)?);
        }
        Ok(states)
    }

    /// `x` (B, N, width) -> the last hidden state of the first token, (B, width), where every token attends to all.
    pub fn first(&self, x: &Tensor) -> Candle<Tensor> {
        let mut x = x.clone();
        let Some((last, before)) = self.layers.split_last() else { return first_token(&x)?.squeeze(1) };
        for layer in before {
            x = self.layer(layer, &x, Mask::None)?;
        }
        // In the last layer only the first token's output is needed; the other tokens serve as keys and values.
        let h = last.layer_norm1.forward(&x)?;
        let q = last.q_proj.forward(&first_token(&h)?)?; // (B, 1, width)
        let (k, v) = (last.k_proj.forward(&h)?, last.v_proj.forward(&h)?);
        let attended = ops::attention(&q, &k, &v, self.shape.heads, Mask::None)?;
        self.finish(last, &first_token(&x)?, &attended)?.squeeze(1)
    }

    fn layer(&self, layer: &Layer, x: &Tensor, mask: Mask) -> Candle<Tensor> {
        let h = layer.layer_norm1.forward(x)?;
        let (q, k, v) = (layer.q_proj.forward(&h)?, layer.k_proj.forward(&h)?, layer.v_proj.forward(&h)?);
        self.finish(layer, x, &ops::attention(&q, &k, &v, self.shape.heads, mask)?)
    }

    /// The rest of a layer. `attended`: the output of its attention before the projection.
    fn finish(&self, layer: &Layer, x: &Tensor, attended: &Tensor) -> Candle<Tensor> {
        let x = (x + layer.out_proj.forward(attended)?)?;
        let h = layer.fc1.forward(&layer.layer_norm2.forward(&x)?)?;
        &x + layer.fc2.forward(&self.shape.act.apply(&h)?)?
    }
}

/// (B, N, width) -> (B, 1, width)
fn first_token(x: &Tensor) -> Candle<Tensor> {
    x.narrow(1, 0, 1)?.contiguous()
}
