//! Columns of batches from pyarrow, polars or our own tools, cast to one type each. Errors name file, column and row.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float32Array, RecordBatch, StringArray, StructArray,
    UInt64Array,
};
use arrow::{compute::cast, datatypes::DataType};

/// Some consecutive rows of a table.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The file that the rows are from, for messages.
    pub table: Arc<str>,
    /// Number of the first row in that file, from 0.
    pub first: usize,
    pub batch: RecordBatch,
}

impl Rows {
    pub fn len(&self) -> usize {
        self.batch.num_rows()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// "pairs.parquet, row 17 (from 0)".
    pub fn at(&self, i: usize) -> String {
        format!("{}, row {} (from 0)", self.table, self.first + i)
    }

    pub fn has(&self, name: &str) -> bool {
        self.batch.column_by_name(name).is_some()
    }

    fn column(&self, name: &str) -> Result<&ArrayRef> {
        self.batch.column_by_name(name).with_context(|| {
            let found: Vec<_> = self.batch.schema_ref().fields().iter().map(|f| f.name().as_str()).collect();
            format!("{}: column '{name}' is missing (found: {})", self.table, found.join(", "))
        })
    }

    fn cast(&self, name: &str, to: &DataType) -> Result<ArrayRef> {
        let column = self.column(name)?;
        cast(column, to).with_context(|| {
            format!("{}: column '{name}' is {}, which cannot be read as {to}", self.table, column.data_type())
        })
    }

    /// A text column; nulls stay null.
    pub fn text_or_null(&self, name: &str) -> Result<StringArray> {
        let kind = self.column(name)?.data_type();
        let textual = matches!(
            kind,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) | DataType::Null
        ) || kind.is_integer();
        ensure!(textual, "{}: column '{name}' is {kind}, expected text", self.table);
        Ok(self.cast(name, &DataType::Utf8)?.as_string::<i32>().clone())
    }

    /// A text column without nulls.
    pub fn text(&self, name: &str) -> Result<StringArray> {
        let column = self.text_or_null(name)?;
        self.refuse_null(name, &column)?;
        Ok(column)
    }

    /// A text column; all nulls where the table does not have it.
    pub fn text_if_there(&self, name: &str) -> Result<StringArray> {
        if self.has(name) { self.text_or_null(name) } else { Ok(StringArray::new_null(self.len())) }
    }

    /// A numeric column as f32; nulls stay null.
    pub fn f32_or_null(&self, name: &str) -> Result<Float32Array> {
        let kind = self.column(name)?.data_type();
        ensure!(
            kind.is_numeric() || *kind == DataType::Null,
            "{}: column '{name}' is {kind}, expected numbers",
            self.table
        );
        Ok(self.cast(name, &DataType::Float32)?.as_primitive().clone())
    }

    /// A column of scores: numbers; null where something could not be scored.
    pub fn scores(&self, name: &str) -> Result<Float32Array> {
        let scores = self.f32_or_null(name)?;
        // One pass over the values decides; what stands under a null does not count.
        if scores.values().iter().any(|x| !x.is_finite())
            && let Some(i) = (0..scores.len()).find(|&i| scores.is_valid(i) && !scores.value(i).is_finite())
        {
            let x = scores.value(i);
            bail!("{}: {name} is {x}, which is not a score; score the image again, or make the value null", self.at(i));
        }
        Ok(scores)
    }

    /// A numeric column as f32 without nulls.
    pub fn f32(&self, name: &str) -> Result<Float32Array> {
        let column = self.f32_or_null(name)?;
        self.refuse_null(name, &column)?;
        Ok(column)
    }

    /// A column of booleans, or of whole numbers where 0 is false; nulls stay null.
    pub fn bool_or_null(&self, name: &str) -> Result<BooleanArray> {
        let kind = self.column(name)?.data_type();
        ensure!(
            matches!(kind, DataType::Boolean | DataType::Null) || kind.is_integer(),
            "{}: column '{name}' is {kind}, expected booleans",
            self.table
        );
        Ok(self.cast(name, &DataType::Boolean)?.as_boolean().clone())
    }

    /// A column of whole numbers that are not negative, without nulls.
    pub fn u64(&self, name: &str) -> Result<UInt64Array> {
        let kind = self.column(name)?.data_type();
        ensure!(kind.is_integer(), "{}: column '{name}' is {kind}, expected whole numbers", self.table);
        // A negative number becomes null in the cast, and is refused as null.
        let column = self.cast(name, &DataType::UInt64)?.as_primitive().clone();
        self.refuse_null(name, &column)?;
        Ok(column)
    }

    /// The values of a list column as f32, row after row.
    pub fn f32_list(&self, name: &str) -> Result<Float32Array> {
        let column = self.column(name)?;
        let Some(list) = column.as_list_opt::<i32>() else {
            bail!("{}: column '{name}' is {}, expected a list of numbers", self.table, column.data_type())
        };
        self.refuse_null(name, list)?;
        // A sliced list still has the values of all rows: take those of these rows.
        let (from, to) = (list.value_offsets()[0] as usize, list.value_offsets()[list.len()] as usize);
        let values = cast(&list.values().slice(from, to - from), &DataType::Float32)?;
        Ok(values.as_primitive().clone())
    }

    /// Image bytes: a binary column, or Hugging Face's struct {bytes, path}. Nulls stay null.
    pub fn bytes(&self, name: &str) -> Result<BinaryArray> {
        let column = self.column(name)?;
        let inner = match column.as_any().downcast_ref::<StructArray>() {
            Some(image) => match image.column_by_name("bytes") {
                Some(bytes) => bytes.clone(),
                None => bail!("{}: column '{name}' is a struct without a field 'bytes'", self.table),
            },
            None => column.clone(),
        };
        let kind = inner.data_type().clone();
        let binary = matches!(
            kind,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
        );
        ensure!(binary, "{}: column '{name}' is {kind}, expected image bytes", self.table);
        let cast = cast(&inner, &DataType::Binary).with_context(|| format!("{}: column '{name}'", self.table))?;
        Ok(cast.as_binary::<i32>().clone())
    }

    fn refuse_null(&self, name: &str, column: &dyn Array) -> Result<()> {
        match (0..column.len()).find(|&i| column.is_null(i)) {
            Some(i) => bail!("{}: column '{name}' is null; every row needs a value", self.at(i)),
            None => Ok(()),
        }
    }

    /// Rows `offset..offset + len` of these.
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        Self { table: self.table.clone(), first: self.first + offset, batch: self.batch.slice(offset, len) }
    }
}
