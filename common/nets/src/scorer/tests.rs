//! Features against transformers and open_clip (the parity kit's), and the arithmetic of heads.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::aesthetic::FORMS;
use super::clip_model::{ClipModel, Reading};
use super::colourfulness::colourfulness;
use super::head::Head;
use super::*;
use crate::image::{Antialias, Rgb};
use crate::transformer::HiddenAct;
use crate::weights::Weights;
use crate::write;

fn options() -> Options {
    Options { device: Device::Cpu, dtype: DType::F32, batch: 3, chosen: Default::default() }
}

/// Weight (out * in) and bias (out) of a linear layer.
type Layer = (Vec<f64>, Vec<f64>);

/// A head whose linear layers have these numbers, 4 -> 3 -> 2 -> 2 -> 2 -> 1, and its layers as (weight, bias).
fn head(folder: &Path, numbers: [usize; 5]) -> (Weights, Vec<Layer>) {
    let sizes = [4, 3, 2, 2, 2, 1];
    let value = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 8.0;
    let (mut tensors, mut layers) = (std::collections::BTreeMap::new(), vec![]);
    for (l, n) in numbers.into_iter().enumerate() {
        let (inner, out) = (sizes[l], sizes[l + 1]);
        let weight: Vec<f32> = (0..inner * out).map(|i| value(i + 7 * l)).collect();
        let bias: Vec<f32> = (0..out).map(|i| value(i + 3 * l + 1)).collect();
        let doubles = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect();
        layers.push((doubles(&weight), doubles(&bias)));
        tensors.insert(format!("layers.{n}.weight"), Tensor::from_vec(weight, (out, inner), &Device::Cpu).unwrap());
        tensors.insert(format!("layers.{n}.bias"), Tensor::from_vec(bias, out, &Device::Cpu).unwrap());
    }
    let path = folder.join("head.safetensors");
    write::tensors(&path, &tensors, Default::default()).unwrap();
    (Weights::open(&path).unwrap(), layers)
}

#[test]
fn heads_are_affine_or_have_relu_between_as_their_numbers_say() {
    let dir = tempfile::tempdir().unwrap();
    let x = [0.5f32, -0.5, 0.1, 0.7];
    let read = |weights: &Weights, width: usize| Head::read(weights, "layers", width, &FORMS);
    let mut answers = vec![];
    for (numbers, relu) in [([0, 2, 4, 6, 7], false), ([0, 3, 6, 9, 11], true)] {
        let (weights, layers) = head(dir.path(), numbers);
        let mut y: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        for (l, (weight, bias)) in layers.iter().enumerate() {
            if relu && l > 0 {
                y.iter_mut().for_each(|v| *v = v.max(0.0));
            }
            let row = |i: usize| weight[i * y.len()..(i + 1) * y.len()].iter().zip(&y).map(|(w, y)| w * y).sum::<f64>();
            y = (0..bias.len()).map(|i| row(i) + bias[i]).collect();
        }
        let ours = read(&weights, 4).unwrap().apply(&x);
        assert!((ours - y[0]).abs() < 1e-6, "{ours} {y:?}");
        answers.push(ours);
        let error = read(&weights, 5).err().unwrap().to_string();
        assert!(error.contains("'layers.0.weight' has shape [3, 4], expected [3, 5]"), "{error}");
    }
    assert_ne!(answers[0], answers[1]);
    let (weights, _) = head(dir.path(), [0, 2, 4, 6, 8]);
    let error = read(&weights, 4).err().unwrap().to_string();
    assert!(error.contains("its linear layers are layers.[0, 2, 4, 6, 8]"), "{error}");
}

#[test]
fn colourfulness_is_zero_for_grey_and_counts_spread_and_bias() {
    let m = |data: &[u8]| colourfulness(&Rgb { width: data.len() / 3, height: 1, data: data.to_vec() });
    assert_eq!(m(&[0, 0, 0, 128, 128, 128, 255, 255, 255]), 0.0);
    // One colour: no spread, rg = 255, yb = 127.5.
    assert!((m(&[255, 0, 0, 255, 0, 0]) - 0.3 * 255f64.hypot(127.5)).abs() < 1e-9);
    // Red and green: rg = +-255 about 0, yb = 127.5 in both.
    assert!((m(&[255, 0, 0, 0, 255, 0]) - (255.0 + 0.3 * 127.5)).abs() < 1e-9);
}

/// The largest difference of rows of unit length.
fn apart(ours: &[Vec<f32>], theirs: &Tensor) -> f64 {
    let theirs = theirs.to_vec2::<f32>().unwrap();
    assert_eq!(ours.len(), theirs.len());
    let mut worst = 0f64;
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let length = theirs.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        for (&a, &b) in ours.iter().zip(theirs) {
            worst = worst.max((f64::from(a) - f64::from(b) / length).abs());
        }
    }
    worst
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn features_are_the_peers_on_the_parity_kit() {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/parity/given");
    let expected = candle_core::safetensors::load(kit.join("expected/features.safetensors"), &Device::Cpu).unwrap();
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(kit.join("expected").join(name)).unwrap()).unwrap()
    };
    let (pairs, prompts) = (json("pairs.json"), json("text_prompts.json"));
    let prompts: Vec<&str> = prompts.as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    let open_clip = Reading::OpenClip(Antialias::On);
    for (metric, folder, reading) in [
        ("hps", "hpsv2", open_clip),
        ("clip", "clip_h_open_clip", open_clip),
        ("pickscore", "pickscore", Reading::HuggingFace),
        ("aesthetic", "clip_l", Reading::HuggingFace),
    ] {
        let model = ClipModel::open(&kit.join("models").join(folder), reading, true, &options()).unwrap();
        for (i, pair) in pairs.as_array().unwrap().iter().enumerate() {
            let picture = |side: &str| {
                let bytes = std::fs::read(kit.join("images").join(pair[side].as_str().unwrap())).unwrap();
                Picture::decode(&bytes, &[model.preprocess]).unwrap()
            };
            let pictures = [picture("image_0"), picture("image_1")];
            let ours = model.image_features(&[&pictures[0], &pictures[1]]).unwrap();
            let gap = apart(&ours, &expected[&format!("{metric}.{i}.image_features")]);
            assert!(gap < 2e-6, "{metric}, image features of pair {i}: {gap}");
            if let Some(theirs) = expected.get(&format!("{metric}.{i}.text_features")) {
                let gap = apart(&model.caption_features(&[pair["prompt"].as_str().unwrap()]).unwrap(), theirs);
                assert!(gap < 2e-6, "{metric}, text features of pair {i}: {gap}");
            }
        }
        if let Some(theirs) = expected.get(&format!("text.{folder}")) {
            let gap = apart(&model.caption_features(&prompts).unwrap(), theirs);
            assert!(gap < 2e-6, "{folder}, text features: {gap}");
        }
    }
}

#[test]
fn the_features_of_a_caption_do_not_depend_on_its_batch() {
    let tower = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/mini/scorers/pickscore");
    let model = ClipModel::open(&tower, Reading::HuggingFace, true, &options()).unwrap();
    let captions = ["", "a cat", "one two three four five six seven eight", "a dog", "x, y, z", "ü"];
    let all = model.caption_features(&captions).unwrap();
    for (caption, features) in captions.iter().zip(&all) {
        assert_eq!(&model.caption_features(&[caption]).unwrap()[0], features);
    }
}

#[test]
fn each_choice_is_offered_once_and_its_default_is_one_of_its_values() {
    let all = choices(|_| true);
    assert_eq!(all.iter().map(|c| c.name).collect::<Vec<_>>(), ["hps-version", "hps-resize"]);
    assert_eq!(choices(|m| m.name == "clip").iter().map(|c| c.name).collect::<Vec<_>>(), ["hps-resize"]);
    for choice in all {
        let mut values = choice.values.iter().map(|form| form.form);
        assert!(choice.default.is_none_or(|default| values.any(|v| v == default)), "{}", choice.name);
    }
    let mut options = options();
    options.chosen.insert("hps-resize".into(), "sharp".into());
    let error = Reading::open_clip(&options).unwrap_err().to_string();
    assert_eq!(error, "hps-resize: 'sharp' is not known; expected `antialias` or `legacy`");
}

#[test]
fn an_unknown_metric_names_those_there_are() {
    let error = named("beauty").err().unwrap().to_string();
    assert_eq!(
        error,
        "there is no metric 'beauty'; there are hps, clip, pickscore, aesthetic, clip-l, colourfulness, imagereward, cyclereward, mps, aesthetic-v2.5"
    );
}

#[test]
fn only_the_name_of_a_model_tells_its_activation() {
    let folder = tempfile::Builder::new().prefix("quickgelu").tempdir().unwrap();
    let act = |tower: &str| open_clip::describe(folder.path(), &folder.path().join(tower)).unwrap().vision.hidden_act;
    assert_eq!(act("open_clip_model.safetensors"), HiddenAct::Gelu);
    assert_eq!(act("ViT-H-14-QuickGELU.pt"), HiddenAct::QuickGelu);
}
