//! Which prompts are shown.

use anyhow::{Result, bail};

use crate::{images::ModelImages, model_table::Prompt};

pub fn common_prompts(tables: &[ModelImages]) -> Result<Vec<&Prompt>> {
    let first = &tables[0].table;
    for other in tables[1..].iter().map(|t| &t.table) {
        for (has, lacks) in [(first, other), (other, first)] {
            if let Some(prompt) = has.prompts.iter().find(|p| lacks.ks(&p.key).next().is_none()) {
                bail!(
                    "prompt {} is in {} but not in {}; models are compared on the same prompts: sample every model from one prompts table",
                    prompt.name(),
                    has.file,
                    lacks.file
                );
            }
        }
    }
    Ok(first.prompts.iter().collect())
}

/// `n` prompts: the same number from each set as far as there are enough, evenly spaced within the set.
pub fn evenly<'a>(prompts: &[&'a Prompt], n: usize) -> Vec<&'a Prompt> {
    let mut sets: Vec<Vec<&Prompt>> = vec![];
    for prompt in prompts {
        match sets.iter_mut().find(|set| set[0].key.0 == prompt.key.0) {
            Some(set) => set.push(prompt),
            None => sets.push(vec![prompt]),
        }
    }
    let mut shares = vec![0; sets.len()];
    for _ in 0..n.min(prompts.len()) {
        let with_room = (0..sets.len()).filter(|&s| shares[s] < sets[s].len());
        if let Some(least) = with_room.min_by_key(|&s| shares[s]) {
            shares[least] += 1;
        }
    }
    let chosen =
        |(set, share): (Vec<&'a Prompt>, usize)| (0..share).map(move |i| set[(2 * i + 1) * set.len() / (2 * share)]);
    sets.into_iter().zip(shares).flat_map(chosen).collect()
}
