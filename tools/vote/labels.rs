//! The rows of a labels table.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, Float32Array, Int8Array, Int32Array, RecordBatch};
use arrow::datatypes::SchemaRef;

use crate::{ballot::Ballot, decide::Decided};

/// One row per pair of `ballot`, in the columns of `schema`.
pub fn labels(schema: &SchemaRef, ballot: &Ballot, decided: &[Decided]) -> Result<RecordBatch> {
    let mut columns = ballot.keys.clone();
    let (mut votes, mut voters) = (vec![0i32; decided.len()], vec![0i32; decided.len()]);
    for metric in &ballot.scores {
        let s: Vec<i8> = metric.s.iter().map(|s_m| s_m.unwrap_or(0)).collect();
        for ((votes, voters), &s_m) in votes.iter_mut().zip(&mut voters).zip(&s) {
            *votes += i32::from(s_m);
            *voters += i32::from(s_m.abs());
        }
        columns.push(Arc::new(Int8Array::from(s)));
    }
    let floats = |value: fn(&Decided) -> f32| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values(decided.iter().map(value)))
    };
    columns.push(Arc::new(Int32Array::from(votes)));
    columns.push(Arc::new(Int32Array::from(voters)));
    columns.push(floats(|d| d.decision.target));
    columns.push(floats(|d| d.decision.weight));
    columns.push(floats(|d| d.decision.target));
    columns.push(floats(|d| 1.0 - d.decision.target));
    RecordBatch::try_new(schema.clone(), columns).context("cannot put the labels together")
}
