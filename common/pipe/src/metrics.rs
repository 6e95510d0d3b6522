//! Which columns of a table are metrics, and which of them a command line chooses.

use anyhow::{Result, ensure};
use arrow::datatypes::Schema;

use crate::image_keys;
use crate::schema::prompts;

/// Stems of columns that end in `_0` and `_1` and are not metrics.
const NOT_METRICS: [&str; 4] = ["image", "label", "jpg", "model"];

/// The metrics of a scores table: every m with numbers in `m_0` and `m_1`.
pub fn of_pairs(schema: &Schema) -> Vec<String> {
    let stems = schema.fields().iter().filter_map(|f| f.name().strip_suffix("_0"));
    let both = |m: &&str| [0, 1].iter().all(|side| numeric(schema, &format!("{m}_{side}")));
    stems.filter(|m| !NOT_METRICS.contains(m)).filter(both).map(String::from).collect()
}

/// A column of a scores table that is half a metric, and what the other half would be called: `m_0` or `m_1` with numbers, where
/// the other is not there or has none.
pub fn half_of_pairs(schema: &Schema) -> Option<(String, String)> {
    schema.fields().iter().map(|f| f.name()).find_map(|name| {
        let (stem, other) = match name.strip_suffix("_0") {
            Some(stem) => (stem, format!("{stem}_1")),
            None => name.strip_suffix("_1").map(|stem| (stem, format!("{stem}_0")))?,
        };
        let half = !NOT_METRICS.contains(&stem) && numeric(schema, name) && !numeric(schema, &other);
        half.then(|| (name.clone(), other))
    })
}

fn numeric(schema: &Schema, name: &str) -> bool {
    schema.field_with_name(name).is_ok_and(|f| f.data_type().is_numeric())
}

/// The metrics of a table of scored images: its columns of floating-point numbers, but those that name an image, of which pandas may
/// have made some.
pub fn of_images(schema: &Schema) -> Vec<String> {
    let names = |name: &str| name == prompts::NSFW_PROB || image_keys::COLUMNS.contains(&name);
    let fields = schema.fields().iter().filter(|f| f.data_type().is_floating() && !names(f.name()));
    fields.map(|f| f.name().clone()).collect()
}

/// The metrics that `--metrics` names, in its order; all that were found where it names none.
pub fn choose(wanted: &[String], found: Vec<String>) -> Result<Vec<String>> {
    check(wanted, &found)?;
    Ok(if wanted.is_empty() { found } else { wanted.to_vec() })
}

pub fn check(wanted: &[String], found: &[String]) -> Result<()> {
    for (i, name) in wanted.iter().enumerate() {
        ensure!(found.contains(name), "--metrics: there is no metric '{name}' (there are: {})", found.join(", "));
        ensure!(!wanted[..i].contains(name), "--metrics names '{name}' twice; name each metric once");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;

    fn schema(columns: &[(&str, DataType)]) -> Schema {
        Schema::new(columns.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)).collect::<Vec<_>>())
    }

    #[test]
    fn metrics_are_found_by_their_columns() {
        let (f32, text) = (DataType::Float32, DataType::Utf8);
        let pairs = [("hps_0", &f32), ("hps_1", &f32), ("label_0", &f32), ("label_1", &f32), ("half_0", &f32)];
        let pairs = pairs.map(|(name, kind)| (name, kind.clone()));
        assert_eq!(of_pairs(&schema(&pairs)), ["hps"]);
        let half = half_of_pairs(&schema(&pairs)).unwrap();
        assert_eq!(half, ("half_0".to_owned(), "half_1".to_owned()));
        assert_eq!(half_of_pairs(&schema(&pairs[..4])), None);
        let images = [("hps", f32.clone()), ("nsfw_prob", f32), ("model", text), ("k", DataType::Float64)];
        assert_eq!(of_images(&schema(&images)), ["hps"]);
    }

    #[test]
    fn a_choice_is_checked_and_keeps_its_order() {
        let names = |text: &str| -> Vec<String> { text.split(' ').map(String::from).collect() };
        assert_eq!(choose(&[], names("hps clip")).unwrap(), names("hps clip"));
        assert_eq!(choose(&names("clip hps"), names("hps clip")).unwrap(), names("clip hps"));
        for (wanted, why) in [("clap", "no metric 'clap' (there are: hps, clip)"), ("hps hps", "names 'hps' twice")] {
            let error = choose(&names(wanted), names("hps clip")).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
