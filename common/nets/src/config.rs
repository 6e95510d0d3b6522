//! Configurations of published models. Every key is obeyed, is known to change nothing that is computed here, or is refused by
//! name with its value. A key that neither diffusers nor transformers has is warned of and passed over, as they do.

use std::{collections::BTreeSet, path::Path, sync::Mutex};

use anyhow::{Context, Result, bail, ensure};
use pipe::names::Form;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::json;

/// The values that a key may hold. `null` stands for a key that is not there, except under `Only`.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// A whole number from .. to.
    Whole(u64, u64),
    /// A finite number from .. to.
    Number(f64, f64),
    Flag,
    Words(&'static [&'static str]),
    /// The name of a value of an enum.
    Named(&'static [Form]),
    /// A list of at most this many entries.
    List(usize, &'static Rule),
    /// One entry, or a list of entries.
    OneOrEach(&'static Rule),
    /// One entry, or a list of equal ones, which is read as one.
    Same(&'static Rule),
    /// The supported value, as JSON; a list of it means the same.
    Only(&'static [&'static str]),
    /// It changes nothing that is computed here.
    Free,
    /// An object or a list that is checked where it is read.
    Read,
}

use Rule::{Free, List, Named, Number, OneOrEach, Only, Same, Whole, Words};

/// The keys of one kind of configuration: names separated by spaces, and what each of them may hold.
pub type Rules = &'static [(&'static str, Rule)];

/// Widths of layers. The widest that is published has 28,672.
pub const WIDTH: Rule = Whole(1, 1 << 16);
/// Layers behind each other. The deepest tower that is published has 64.
pub const DEPTH: Rule = Whole(1, 256);
/// Tokens that a tokenizer knows: four times the largest published vocabulary.
pub const VOCABULARY: Rule = Whole(1, 1 << 20);
/// Tokens of a text: a begin and an end at least. The longest of a published text encoder is 8,192.
pub const POSITIONS: Rule = Whole(2, 1 << 16);
/// The number that a norm adds to the variance.
pub const EPSILON: Rule = Number(1e-20, 1.0);

impl Rule {
    pub fn fits(self, value: &Value) -> bool {
        let each = |rule: &Rule, list: &[Value]| !list.is_empty() && list.iter().all(|value| rule.fits(value));
        match self {
            Whole(from, to) => whole(value).is_some_and(|n| (from..=to).contains(&n)),
            Number(from, to) => value.as_f64().is_some_and(|n| (from..=to).contains(&n)),
            Rule::Flag => value.is_boolean(),
            Words(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Named(forms) => value.as_str().is_some_and(|word| forms.iter().any(|form| form.form == word)),
            List(most, rule) => value.as_array().is_some_and(|list| list.len() <= most && each(rule, list)),
            OneOrEach(rule) => rule.fits(value) || value.as_array().is_some_and(|list| each(rule, list)),
            Same(rule) => OneOrEach(rule).fits(value) && value.as_array().is_none_or(|l| l.iter().all(|v| *v == l[0])),
            Only(all) => match value {
                Value::Array(list) if !list.is_empty() => each(&self, list),
                one => all.iter().any(|text| json::same(one, text)),
            },
            Free | Rule::Read => true,
        }
    }

    /// A value that fits, as it is read.
    fn read(self, value: Value) -> Value {
        match (self, value) {
            (Same(rule), Value::Array(mut list)) => rule.read(list.swap_remove(0)),
            (Same(rule) | OneOrEach(rule), one) if !one.is_array() => rule.read(one),
            (Whole(..), value) => whole(&value).map_or(value, Into::into),
            (_, value) => value,
        }
    }

    fn expected(self) -> String {
        match self {
            Whole(from, to) => format!("a whole number from {from} to {to}"),
            Number(from, to) => format!("a number from {from} to {to}"),
            Rule::Flag => "true or false".into(),
            Words(words) => words.join(" or "),
            Named(forms) => forms.iter().map(|form| form.form).collect::<Vec<_>>().join(" or "),
            List(most, rule) => format!("a list of at most {most} entries, each {}", rule.expected()),
            OneOrEach(rule) => format!("{}, or a list of such", rule.expected()),
            Same(rule) => format!("{}, the same for all", rule.expected()),
            Only(all) => all.join(" or "),
            Free | Rule::Read => String::new(),
        }
    }
}

/// A whole number, also if it is written as 64.0.
fn whole(value: &Value) -> Option<u64> {
    let float = || value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..9e15).contains(n)).map(|n| n as u64);
    value.as_u64().or_else(float)
}

/// The class of diffusers that a configuration is for, where it says so.
pub fn class(file: &Path) -> Result<Option<String>> {
    Ok(json::read::<Value>(file)?["_class_name"].as_str().map(str::to_owned))
}

/// Reads a configuration into `T`, whose keys and types `rules` list. Missing keys take `T`'s defaults.
pub fn read<T: DeserializeOwned>(file: &Path, rules: &[Rules]) -> Result<T> {
    let Value::Object(keys) = json::read(file)? else {
        bail!("{} is not a configuration: it holds no JSON object", file.display())
    };
    checked(keys, rules, &file.display().to_string())
}

/// `keys` of the configuration `file`, or of a part of it.
pub fn checked<T: DeserializeOwned>(keys: Map<String, Value>, rules: &[Rules], file: &str) -> Result<T> {
    let mut read = Map::new();
    for (key, value) in keys {
        let Some(rule) = rule(rules, &key) else {
            // An underscore begins diffusers' own notes.
            if !value.is_null() && !key.starts_with('_') {
                warn(&format!("{file}: the key {key:?} is not known and changes nothing (it is {value})"));
            }
            continue;
        };
        if value.is_null() && !matches!(rule, Only(_)) {
            continue;
        }
        ensure!(rule.fits(&value), "{file}: {key} = {value} is not supported; expected {}", rule.expected());
        if !matches!(rule, Only(_) | Free) {
            read.insert(key, rule.read(value));
        }
    }
    serde_json::from_value(Value::Object(read)).with_context(|| format!("{file} does not hold what is expected"))
}

/// The values that `key` may hold, if one of `rules` knows it.
pub fn rule(rules: &[Rules], key: &str) -> Option<Rule> {
    let mut all = rules.iter().copied().flatten();
    all.find(|(names, _)| names.split(' ').any(|name| name == key)).map(|(_, rule)| *rule)
}

/// Says once per process what a user should know of a model and that stops nothing.
pub fn warn(what: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let new = SAID.lock().is_ok_and(|mut said| said.insert(what.to_owned()));
    if new {
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("warning: {}\n", pipe::shown::sentence(what)),
        );
    }
}

/// Keys of any of transformers' configurations: how it trains, generates and stores. None changes a tower's output.
pub const TRANSFORMERS: Rules = &[
    ("quantization_config", Only(&["null"])),
    ("pruned_heads", Only(&["null", "{}"])),
    ("chunk_size_feed_forward", Free), // the same numbers in pieces
    ("add_cross_attention is_encoder_decoder is_decoder", Only(&["null", "false"])),
    (
        "architectures attention_dropout attn_implementation bad_words_ids begin_suppress_tokens bos_token_id \
         cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype \
         early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty \
         finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label \
         initializer_factor initializer_range label2id length_penalty max_length min_length model_type \
         no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions \
         output_hidden_states output_scores pad_token_id prefix problem_type remove_invalid_values \
         repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params \
         temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p \
         torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache use_return_dict",
        Free,
    ),
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_take_what_they_say_and_nothing_else() {
        for (rule, fits, not) in [
            (Whole(1, 8), json!([1, 8, 8.0]), json!([0, 9, 1.5, -1, "1", true, [1], 1e30])),
            (Number(-1.0, 1.0), json!([0, -1, 0.5]), json!([1.1, "0", [0]])),
            (Only(&["1", "null"]), json!([1, 1.0, null, [1, 1]]), json!([true, 2, [], [1, 2], "1"])),
            (Words(&["a", "b"]), json!(["a", "b"]), json!(["c", ["a"], 1])),
            (List(2, &WIDTH), json!([[1], [1, 2]]), json!([[], [1, 2, 3], 1, [[1]]])),
            (Same(&WIDTH), json!([1, [1, 1]]), json!([[1, 2], [], "1"])),
            (OneOrEach(&WIDTH), json!([1, [1, 2]]), json!([[], [[1]], [1, "2"]])),
        ] {
            for (values, expected) in [(fits, true), (not, false)] {
                for value in values.as_array().unwrap() {
                    assert_eq!(rule.fits(value), expected, "{rule:?} {value}");
                }
            }
        }
        let keys = json!({ "a": 64.0, "b": [3, 3], "c": null }).as_object().unwrap().clone();
        let read: Value = checked(keys, &[&[("a", WIDTH), ("b", Same(&WIDTH)), ("c", WIDTH)]], "x").unwrap();
        assert_eq!(read, json!({ "a": 64, "b": 3 }));
    }
}
