//! Tables and prompts.

use std::{io::Cursor, path::Path};

use anyhow::Result;
use pipe::{
    metrics, prompt_source,
    table::{BATCH, Inputs},
};

use super::put;

/// Parquet, an Arrow file or an Arrow stream: as a file, and as a pipe.
pub fn table(folder: &Path, bytes: &[u8]) {
    let path = put(folder, "table", bytes);
    let _ = Inputs::open(&[path]).and_then(read);
    let _ = Inputs::stream("a pipe", Cursor::new(bytes.to_vec())).and_then(read);
}

/// Reads all columns as every type that a tool may ask for.
fn read(mut inputs: Inputs) -> Result<()> {
    let _ = inputs.origins();
    let _ = inputs.own_origin().map(|origin| origin.chain().len());
    let _ = (metrics::of_pairs(inputs.schema()), metrics::of_images(inputs.schema()));
    let names: Vec<String> = inputs.schema().fields().iter().map(|f| f.name().clone()).collect();
    let said = inputs.rows();
    let mut rows = 0;
    for batch in inputs.read(None, 0..usize::MAX, BATCH)? {
        let batch = batch?;
        rows += batch.len();
        for name in &names {
            let _ = (batch.text(name).is_ok(), batch.f32(name).is_ok(), batch.scores(name).is_ok());
            let _ = (batch.u64(name).is_ok(), batch.bool_or_null(name).is_ok(), batch.f32_list(name).is_ok());
            let _ = batch.bytes(name).is_ok();
        }
    }
    assert!(said.is_none_or(|said| said == rows), "the table says {said:?} rows and has {rows}");
    // A part of the rows and columns, as `--shard` asks for them.
    let first: Vec<&str> = names.iter().take(1).map(String::as_str).collect();
    if said.is_some() {
        inputs.read(Some(&first), rows / 3..rows, 7)?.try_for_each(|batch| batch.map(|_| ()))?;
    }
    Ok(())
}

/// TSV, JSON, text, or a table of prompts.
pub fn prompts(folder: &Path, bytes: &[u8]) {
    let path = put(folder, "prompts", bytes);
    if let Ok(all) = prompt_source::read(&[path], None) {
        assert_eq!(all.counts.read, all.prompts.len() + all.counts.duplicates, "a prompt was lost");
    }
}
