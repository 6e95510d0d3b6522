//! Files of weights.

use std::{fs, path::Path};

use anyhow::Result;
use nets::weights::{self, Weights};
use pipe::text::count;

use crate::finding::{Finding, How};

/// Whether a file is one of weights, by its content or, where that says nothing, by its name.
pub fn is_weights(path: &Path) -> bool {
    let mut begin = [0; 9];
    let read = fs::File::open(path).and_then(|file| std::os::unix::fs::FileExt::read_at(&file, &mut begin, 0));
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let named = ["safetensors", "ckpt", "pt", "pth", "bin"].contains(&ending);
    // A safetensors file begins with the length of its header, which is JSON.
    named || read.is_ok_and(|read| read == 9 && begin[8] == b'{' && begin[6..8] == [0, 0])
}

/// One file, or the index of several.
pub fn file(path: &Path, how: How) -> Result<Finding> {
    let weights = match Weights::open(path) {
        Ok(weights) => weights,
        Err(error) => return Ok(Finding::not_whole("weights", &error)),
    };
    let mut finding = about(&weights);
    if !how.quick {
        numbers(&weights, &mut finding);
    }
    let ours = fs::File::open(path).is_ok() && weights::metadata(path).is_ok();
    if ours && !how.quick {
        match weights::check(path) {
            Ok(true) => finding = finding.holds("its checksum is right"),
            Ok(false) => {
                finding = finding.holds("it carries no checksum, so a changed byte among its numbers is not seen")
            }
            Err(error) => finding.problems.extend(Finding::not_whole("", &error).problems),
        }
    }
    Ok(finding)
}

/// The weights in a folder of one network, under any of the usual names.
pub fn folder(path: &Path, how: How) -> Finding {
    match Weights::open(path) {
        Ok(weights) => {
            let mut finding = about(&weights);
            if !how.quick {
                numbers(&weights, &mut finding);
            }
            for file in weights.files().iter().filter(|file| !how.quick && weights::metadata(file).is_ok()) {
                if let Err(error) = weights::check(file) {
                    finding.problems.extend(Finding::not_whole("", &error).problems);
                }
            }
            finding
        }
        Err(error) => Finding::not_whole("weights", &error),
    }
}

/// Reads every tensor: a network's floats are numbers, and a pickle has a checksum of each.
fn numbers(weights: &Weights, finding: &mut Finding) {
    let bad = weights.names().into_iter().find_map(|name| weights.numbers(&name).err());
    finding.problems.extend(bad.into_iter().flat_map(|error| Finding::not_whole("", &error).problems));
}

fn about(weights: &Weights) -> Finding {
    let names = weights.names();
    let numbers: usize =
        names.iter().filter_map(|name| weights.dims(name)).map(|dims| dims.iter().product::<usize>()).sum();
    let kind = match names.iter().any(|name| name.contains("lora_A") || name.contains("lora_down")) {
        true => "adapters (LoRA)",
        false => "weights",
    };
    let mut finding =
        Finding::new(kind).holds(format!("{}, {}", count(names.len(), "tensor"), count(numbers, "number")));
    finding.origin = weights.origin();
    finding
}
