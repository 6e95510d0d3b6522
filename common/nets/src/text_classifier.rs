//! A DistilBERT text classifier (transformers' DistilBertForSequenceClassification): the filter for safe prompts.
//!
//! candle-transformers' DistilBERT is not used, because its `gelu` is the tanh approximation: with it the logits of the parity kit are
//! off by 1.2e-3, with the exact one by less than 5e-5.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use candle_core::{DType, Device, IndexOp, Result as Candle, Tensor};
use ops::Mask;
use pipe::id;
use tokenizers::Tokenizer;

use crate::config::Rule::{Free, Read, Words};
use crate::config::{self, DEPTH, POSITIONS, Rules, TRANSFORMERS, VOCABULARY, WIDTH};
use crate::layers::{Frozen, LayerNorm};
use crate::loader::Loader;
use crate::tokenizer::{beginning, wordpiece};
use crate::weights::{Shapes, Weights};

/// The keys of transformers' DistilBertConfig that decide what it computes.
const KEYS: Rules = &[
    ("model_type", Words(&["distilbert"])), // the only kind of text classifier that is supported
    ("problem_type", Words(&["single_label_classification"])), // whose classes exclude each other
    ("id2label", Read),
    ("vocab_size", VOCABULARY),
    ("max_position_embeddings", POSITIONS),
    ("dim hidden_dim n_heads", WIDTH),
    ("n_layers", DEPTH),
    ("activation", Words(&["gelu", "relu"])),
    ("qa_dropout seq_classif_dropout", Free),
    ("sinusoidal_pos_embds", Free), // the weights hold them
];

crate::json::defaults! {
    /// `config.json`; a missing key has transformers' default.
    #[derive(Debug)]
    struct Config {
        model_type: String = String::new(),
        id2label: BTreeMap<usize, String> = BTreeMap::from([(0, "LABEL_0".into()), (1, "LABEL_1".into())]),
        vocab_size: usize = 30522,
        max_position_embeddings: usize = 512,
        dim: usize = 768,
        hidden_dim: usize = 3072,
        n_layers: usize = 6,
        n_heads: usize = 12,
        activation: String = "gelu".into(),
    }
}

impl Config {
    fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Self = config::read(&path, &[KEYS, TRANSFORMERS])?;
        ensure!(!config.model_type.is_empty(), "{}: model_type is missing, expected distilbert", path.display());
        ensure!(
            config.dim.is_multiple_of(config.n_heads),
            "{}: dim {} does not divide into {} heads",
            path.display(),
            config.dim,
            config.n_heads
        );
        Ok(config)
    }
}

struct Layer {
    q_lin: Frozen,
    k_lin: Frozen,
    v_lin: Frozen,
    out_lin: Frozen,
    sa_layer_norm: LayerNorm,
    lin1: Frozen,
    lin2: Frozen,
    output_layer_norm: LayerNorm,
}

pub struct TextClassifier {
    /// Names of the classes, in the order of the logits.
    pub labels: Vec<String>,
    /// SHA-256 over the weights and the vocabulary, in hexadecimal.
    pub hash: String,
    tokenizer: Tokenizer,
    network: Network,
}

struct Network {
    config: Config,
    word_embeddings: Tensor,     // (vocabulary, dim)
    position_embeddings: Tensor, // (positions, dim)
    layer_norm: LayerNorm,
    layers: Vec<Layer>,
    pre_classifier: Frozen,
    classifier: Frozen,
}

/// The epsilon of every layer norm; config.json does not contain it.
const EPS: f64 = 1e-12;

impl TextClassifier {
    /// Opens a folder with `config.json`, weights (safetensors or a PyTorch pickle) and `tokenizer.json` or `vocab.txt`.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let config = Config::open(folder)?;
        let (tokenizer, vocabulary) = wordpiece::from_folder(folder, config.max_position_embeddings)?;
        let tokens = tokenizer.get_vocab_size(true);
        ensure!(
            tokens <= config.vocab_size,
            "{}: the tokenizer has {tokens} tokens and the model {}: they belong to different models",
            folder.display(),
            config.vocab_size
        );
        let weights = Weights::open(folder)?;
        let hash = id::sha256_of(&[weights.hash()?.as_bytes(), &std::fs::read(vocabulary)?]);
        let network = Network::load(&Loader::frozen(&weights, DType::F32, device), config)?;
        Ok(Self {
            hash: id::hex(&hash),
            tokenizer,
            labels: network.config.id2label.values().cloned().collect(),
            network,
        })
    }

    /// The token ids of a text: [CLS], the text, truncated to the model's length, [SEP].
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(beginning(text), true).map_err(|e| anyhow!("{e}"))?.get_ids().to_vec())
    }

    /// The logits of each text, one per class. The other texts of a call do not change them, because none is padded.
    pub fn logits(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut by_length: BTreeMap<usize, Vec<(usize, Vec<u32>)>> = BTreeMap::new();
        for (i, text) in texts.iter().enumerate() {
            let ids = self.ids(text)?;
            by_length.entry(ids.len()).or_default().push((i, ids));
        }
        let mut logits = vec![vec![]; texts.len()];
        for batch in by_length.values().flat_map(|rows| rows.chunks(BATCH)) {
            let ids: Vec<&[u32]> = batch.iter().map(|(_, ids)| &ids[..]).collect();
            for ((i, _), row) in batch.iter().zip(self.network.forward(&ids)?.to_vec2::<f32>()?) {
                logits[*i] = row;
            }
        }
        Ok(logits)
    }

    /// The probability of class number `label` for each text: the softmax of its logits, in f64.
    pub fn probabilities(&self, texts: &[&str], label: usize) -> Result<Vec<f32>> {
        let softmax = |row: Vec<f32>| -> Result<f32> {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let e: Vec<f64> = row.iter().map(|&l| f64::from(l - most).exp()).collect();
            let p = (e[label] / e.iter().sum::<f64>()) as f32;
            ensure!(p.is_finite(), "the text classifier gives the probability {p}; its weights are damaged");
            Ok(p)
        };
        self.logits(texts)?.into_iter().map(softmax).collect()
    }
}

impl Network {
    fn load(root: &Loader, config: Config) -> Result<Self> {
        let (p, d) = (root.pp("distilbert"), config.dim);
        let layer = |i: usize| -> Result<Layer> {
            let p = p.pp("transformer.layer").pp(i);
            let (a, f) = (p.pp("attention"), p.pp("ffn"));
            Ok(Layer {
                q_lin: Frozen::load(a.pp("q_lin"), d, d)?,
                k_lin: Frozen::load(a.pp("k_lin"), d, d)?,
                v_lin: Frozen::load(a.pp("v_lin"), d, d)?,
                out_lin: Frozen::load(a.pp("out_lin"), d, d)?,
                sa_layer_norm: LayerNorm::load(p.pp("sa_layer_norm"), d, EPS)?,
                lin1: Frozen::load(f.pp("lin1"), d, config.hidden_dim)?,
                lin2: Frozen::load(f.pp("lin2"), config.hidden_dim, d)?,
                output_layer_norm: LayerNorm::load(p.pp("output_layer_norm"), d, EPS)?,
            })
        };
        let embeddings = p.pp("embeddings");
        Ok(Self {
            word_embeddings: embeddings.get("word_embeddings.weight", &[config.vocab_size, d])?,
            position_embeddings: embeddings.get("position_embeddings.weight", &[config.max_position_embeddings, d])?,
            layer_norm: LayerNorm::load(embeddings.pp("LayerNorm"), d, EPS)?,
            layers: (0..config.n_layers).map(layer).collect::<Result<_>>()?,
            pre_classifier: Frozen::load(root.pp("pre_classifier"), d, d)?,
            classifier: Frozen::load(root.pp("classifier"), d, config.id2label.len())?,
            config,
        })
    }

    /// Logits (B, classes) of B rows of ids (B, N).
    fn forward(&self, ids: &[&[u32]]) -> Candle<Tensor> {
        let (b, n) = (ids.len(), ids[0].len());
        let flat = Tensor::from_vec(ids.concat(), b * n, self.word_embeddings.device())?;
        // (B, N, dim)
        let words = self.word_embeddings.index_select(&flat, 0)?.reshape((b, n, ()))?;
        let x = words.broadcast_add(&self.position_embeddings.narrow(0, 0, n)?)?;
        let mut x = self.layer_norm.forward(&x)?; // (B, N, dim)
        for layer in &self.layers {
            let (q, k, v) = (layer.q_lin.forward(&x)?, layer.k_lin.forward(&x)?, layer.v_lin.forward(&x)?);
            let attended = layer.out_lin.forward(&ops::attention(&q, &k, &v, self.config.n_heads, Mask::None)?)?;
            x = layer.sa_layer_norm.forward(&(attended + &x)?)?;
            let h = layer.lin1.forward(&x)?;
            let h = if self.config.activation == "relu" { h.relu()? } else { ops::gelu(&h)? };
            x = layer.output_layer_norm.forward(&(layer.lin2.forward(&h)? + &x)?)?;
        }
        let class = x.i((.., 0))?.contiguous()?; // (B, dim): [CLS]
        self.classifier.forward(&self.pre_classifier.forward(&class)?.relu()?)
    }
}

/// The names and shapes of the tensors that the classifier of a folder's `config.json` has.
pub fn shapes(folder: &Path) -> Result<Shapes> {
    let weights = Weights::imagined(|_| true);
    Network::load(&Loader::frozen(&weights, DType::F32, &Device::Cpu), Config::open(folder)?)?;
    Ok(weights.asked())
}

const BATCH: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[derive(serde::Deserialize)]
    struct Row {
        prompt: String,
        ids: Vec<u32>,
        logits: Vec<f32>,
        probs: Vec<f32>,
    }

    #[test]
    #[ignore = "needs ../shared/parity/given"]
    fn logits_are_the_peers_on_the_parity_kit() {
        let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/parity/given");
        let rows: Vec<Row> = json::read(&kit.join("expected/nsfw.json")).unwrap();
        let folder = kit.join("models/nsfw_text_classifier");
        // Once with tokenizer.json, once with vocab.txt alone.
        let plain = tempfile::tempdir().unwrap();
        for name in ["config.json", "pytorch_model.bin", "vocab.txt"] {
            std::fs::copy(folder.join(name), plain.path().join(name)).unwrap();
        }
        for folder in [&folder, plain.path()] {
            let model = TextClassifier::open(folder, &Device::Cpu).unwrap();
            assert_eq!(model.labels, ["SFW", "NSFW"]);
            let texts: Vec<&str> = rows.iter().map(|r| &r.prompt[..]).collect();
            let (logits, probs) = (model.logits(&texts).unwrap(), model.probabilities(&texts, 1).unwrap());
            let mut worst = 0f32;
            for ((row, logits), p) in rows.iter().zip(&logits).zip(probs) {
                assert_eq!(model.ids(&row.prompt).unwrap(), row.ids, "{:?}", row.prompt);
                for (a, b) in logits.iter().chain([&p]).zip(row.logits.iter().chain([&row.probs[1]])) {
                    worst = worst.max((a - b).abs());
                }
            }
            println!("{} prompts, logits and probabilities within {worst:e}", rows.len());
            assert!(worst < 5e-5, "{worst}");
        }
    }
}
