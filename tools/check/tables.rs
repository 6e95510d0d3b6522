//! Tables: which kind it is by its columns, and whether every row can be read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use arrow::array::Array;
use arrow::datatypes::Schema;
use pipe::schema::{images, labels, pairs, prompts};
use pipe::table::{self, BATCH, Inputs};
use pipe::text::count;

use crate::finding::{Finding, How};
use crate::lists::{self, Named};

/// A kind of table: its name, what a row is, the columns that it needs, and those that it does not have.
struct Kind {
    name: &'static str,
    needs: &'static [&'static str],
    lacks: &'static [&'static str],
}

/// The first kind whose columns are there is meant.
const KINDS: [Kind; 12] = [
    Kind { name: "pairs", needs: &pairs::NEEDED, lacks: &[] },
    Kind { name: "labels", needs: &[labels::PAIR_ID, labels::TARGET, labels::WEIGHT], lacks: &[] },
    Kind { name: "images", needs: &[prompts::PROMPT, images::IMAGE], lacks: &[] },
    Kind {
        name: "scored images",
        needs: &[prompts::PROMPT_ID, images::IMAGE_UID, images::MODEL],
        lacks: &[images::IMAGE],
    },
    Kind {
        name: "pairs with labels, without images",
        needs: &[pairs::CAPTION, pairs::UID[0], pairs::UID[1], pairs::LABEL[0], pairs::LABEL[1]],
        lacks: &[labels::PAIR_ID, pairs::JPG[0]],
    },
    Kind { name: "latents", needs: &[images::IMAGE_UID, "mean", "logvar"], lacks: &[] },
    Kind { name: "captions", needs: &[pairs::CAPTION, "states"], lacks: &[] },
    Kind { name: "scores", needs: &[labels::PAIR_ID, pairs::UID[0], pairs::UID[1], pairs::LABEL[0]], lacks: &[] },
    Kind { name: "list of pairs", needs: &[labels::PAIR_ID, pairs::CAPTION, pairs::UID[0], pairs::UID[1]], lacks: &[] },
    Kind { name: "pairs as TRL reads them", needs: &[prompts::PROMPT, "chosen", "rejected"], lacks: &[] },
    Kind { name: "list for `pairs`", needs: &["winner", "loser"], lacks: &[] },
    Kind { name: "prompts", needs: &[prompts::PROMPT], lacks: &[] },
];

/// Whether a file is meant to be a table, damaged or not: by its ending or its first bytes. An empty file
/// without an ending may have been one.
pub fn is_table(path: &Path) -> Result<bool> {
    const ENDINGS: [&str; 6] = ["parquet", "arrow", "arrows", "feather", "ipc", "partial"];
    let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
    let mut begin = [0; 8];
    let read = File::open(path)?.read_at(&mut begin, 0)?;
    let named = ending.map_or(read == 0, |ending| ENDINGS.iter().any(|known| *known == ending));
    Ok(named || table::is_table(&begin[..read]) || Inputs::open_one(path).is_ok())
}

/// A file, or a folder of parts.
pub fn look_at(path: &Path, how: How) -> Result<Finding> {
    let mut table = match Inputs::open_one(path) {
        Ok(table) => table,
        Err(error) => return Ok(Finding::not_whole("", &error)),
    };
    let schema = table.schema().clone();
    let has = |column: &&str| schema.field_with_name(column).is_ok();
    let kind = KINDS.iter().find(|kind| kind.needs.iter().all(has) && !kind.lacks.iter().any(has));
    let mut finding = Finding::new(kind.map_or("an unknown kind of table", |kind| kind.name));
    finding.origin = table.own_origin();
    if let Some(rows) = table.rows() {
        finding = finding.holds(format!("{}, columns {}", count(rows, "row"), names(&schema)));
    }
    match kind {
        None => finding.problem(nearest(&schema)),
        Some(_) if table.rows() == Some(0) => finding.problem("it has no rows"),
        Some(_) => {}
    }
    if !how.quick {
        let images = Named::new(path, how);
        let needs = kind.map_or(&[][..], |kind| kind.needs).iter().copied();
        // A pair may be without a human label.
        let needs: Vec<_> = needs.filter(|column| !pairs::LABEL.contains(column)).collect();
        read(&mut table, &needs, lists::columns(&schema), images, &mut finding);
    }
    Ok(finding)
}

/// Reads every row, counts the nulls in columns that need values, and looks for the images that the columns `naming` name.
fn read(table: &mut Inputs, needs: &[&str], naming: Vec<&str>, mut images: Named, finding: &mut Finding) {
    let mut nulls: BTreeMap<&str, usize> = BTreeMap::new();
    let batches = table.read(None, 0..usize::MAX, BATCH);
    let all = batches.and_then(|mut batches| {
        batches.try_for_each(|rows| {
            let rows = rows?;
            for column in needs {
                let missing = rows.batch.column_by_name(column).map_or(0, |column| column.null_count());
                *nulls.entry(column).or_default() += missing;
            }
            let named = naming.iter().map(|column| rows.text_or_null(column)).collect::<Result<Vec<_>>>()?;
            let in_row =
                |i: usize| named.iter().filter(move |column| column.is_valid(i)).map(move |column| column.value(i));
            (0..rows.len()).flat_map(in_row).for_each(|image| images.look_for(image));
            Ok(())
        })
    });
    images.tell(finding);
    if let Err(error) = all {
        finding.problems.extend(Finding::not_whole("", &error).problems);
    }
    for (column, n) in nulls.into_iter().filter(|(_, n)| *n > 0) {
        finding.problem(format!(
            "{} no value in column '{column}', which needs one",
            if n == 1 { "1 row has".into() } else { format!("{n} rows have") }
        ));
    }
}

fn names(schema: &Schema) -> String {
    /// Columns that are listed: a table of ours has fewer.
    const MOST: usize = 30;
    let names: Vec<_> = schema.fields().iter().map(|field| pipe::text::shown(field.name()).into_owned()).collect();
    let more = if names.len() > MOST { format!(" and {} more", names.len() - MOST) } else { String::new() };
    format!("{}{more}", names[..names.len().min(MOST)].join(", "))
}

/// What a table of no kind lacks to be of the kind that it is most like.
fn nearest(schema: &Schema) -> String {
    let missing = |kind: &Kind| -> Vec<&str> {
        kind.needs.iter().copied().filter(|column| schema.field_with_name(column).is_err()).collect()
    };
    let near =
        KINDS.iter().filter(|kind| missing(kind).len() < kind.needs.len()).min_by_key(|kind| missing(kind).len());
    match near {
        Some(kind) => format!("for a table of {} it lacks {}", kind.name, missing(kind).join(", ")),
        None => "it has none of the columns that are read here".into(),
    }
}
