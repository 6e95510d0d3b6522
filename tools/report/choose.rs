//! Which prompts are shown.

use anyhow::{Result, bail};

use crate::drawn::{Drawn, Key, name};

/// Key and text.
pub type Prompt = (Key, String);

/// The prompts, which all tables must have.
///
/// # Errors
/// A prompt that one table lacks.
pub fn common_prompts(tables: &[Drawn]) -> Result<&[Prompt]> {
    let first = &tables[0];
    for other in &tables[1..] {
        for (has, lacks) in [(first, other), (other, first)] {
            if let Some((key, text)) = has.prompts.iter().find(|(key, _)| !lacks.has(key)) {
                bail!(
                    "prompt {} is in {} but not in {}; models are compared on the same prompts: sample every model from one prompts table",
                    name(key, text),
                    has.table,
                    lacks.table
                );
            }
        }
    }
    Ok(&first.prompts)
}

/// `n` prompts, as many of each set as of any other where there are enough, and evenly spaced within it.
pub fn spread(prompts: &[Prompt], n: usize) -> Vec<&Prompt> {
    let mut sets: Vec<Vec<&Prompt>> = vec![];
    for prompt in prompts {
        match sets.iter_mut().find(|set| set[0].0.0 == prompt.0.0) {
            Some(set) => set.push(prompt),
            None => sets.push(vec![prompt]),
        }
    }
    let mut share = vec![0; sets.len()];
    for _ in 0..n.min(prompts.len()) {
        let room = (0..sets.len()).filter(|&s| share[s] < sets[s].len());
        if let Some(least) = room.min_by_key(|&s| share[s]) {
            share[least] += 1;
        }
    }
    let evenly = |(set, share): (&Vec<&'_ Prompt>, usize)| -> Vec<usize> {
        (0..share).map(|i| (2 * i + 1) * set.len() / (2 * share)).collect()
    };
    let picked = sets.iter().zip(share).flat_map(|(set, share)| evenly((set, share)).into_iter().map(|i| set[i]));
    picked.collect()
}
