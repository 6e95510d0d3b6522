//! Columns of batches from pyarrow, polars or our own tools, cast to one type each. Errors name file, column and row.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float32Array, RecordBatch, StringArray, StructArray,
    UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};

use crate::id::hex;
use crate::text::shown;

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

    /// A column, unpacked where equal values are stored once.
    fn column(&self, name: &str) -> Result<ArrayRef> {
        let column = self.batch.column_by_name(name).with_context(|| {
            let found: Vec<_> = self.batch.schema_ref().fields().iter().map(|f| shown(f.name()).into_owned()).collect();
            format!("{}: column '{name}' is missing (found: {})", self.table, found.join(", "))
        })?;
        match column.data_type() {
            DataType::Dictionary(_, values) => self.cast(name, column, values),
            DataType::RunEndEncoded(_, values) => self.cast(name, column, values.data_type()),
            _ => Ok(column.clone()),
        }
    }

    fn cast(&self, name: &str, column: &dyn Array, to: &DataType) -> Result<ArrayRef> {
        cast(column, to).with_context(|| {
            format!("{}: column '{name}' is {}, which cannot be read as {to}", self.table, column.data_type())
        })
    }

    /// A text column; nulls stay null. Numbers and booleans become their text, a whole number without a point even if pandas
    /// made a float of it; bytes are UTF-8, and 16 of them a UUID.
    pub fn text_or_null(&self, name: &str) -> Result<StringArray> {
        let column = self.column(name)?;
        let kind = column.data_type();
        let text = || Ok(self.cast(name, &column, &DataType::Utf8)?.as_string::<i32>().clone());
        match kind {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean | DataType::Null => text(),
            DataType::Float16 | DataType::Float32 | DataType::Float64 => {
                let whole =
                    |x: Option<&str>| x.filter(|x| *x != "NaN").map(|x| x.strip_suffix(".0").unwrap_or(x).to_owned());
                Ok(text()?.iter().map(whole).collect())
            }
            _ if kind.is_numeric() => text(),
            DataType::FixedSizeBinary(16) => {
                let bytes = column.as_fixed_size_binary();
                Ok(bytes.iter().map(|bytes| bytes.map(uuid)).collect())
            }
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
                let bytes = self.cast(name, &column, &DataType::Binary)?;
                let bytes = bytes.as_binary::<i32>();
                let text = |i: usize| bytes.is_valid(i).then(|| std::str::from_utf8(bytes.value(i))).transpose();
                let all = (0..bytes.len()).map(|i| {
                    text(i)
                        .with_context(|| format!("{}: column '{name}' holds bytes that are not UTF-8 text", self.at(i)))
                });
                all.collect()
            }
            _ => bail!("{}: column '{name}' is {kind}, expected text", self.table),
        }
    }

    pub fn text(&self, name: &str) -> Result<StringArray> {
        let column = self.text_or_null(name)?;
        self.refuse_null(name, &column)?;
        Ok(column)
    }

    /// A text column; all nulls if the table does not have it.
    pub fn text_if_there(&self, name: &str) -> Result<StringArray> {
        if self.has(name) { self.text_or_null(name) } else { Ok(StringArray::new_null(self.len())) }
    }

    /// A column of numbers or booleans as f32; nulls stay null.
    pub fn f32_or_null(&self, name: &str) -> Result<Float32Array> {
        let column = self.column(name)?;
        let kind = column.data_type();
        let numbers = kind.is_numeric() || matches!(kind, DataType::Boolean | DataType::Null);
        ensure!(numbers, "{}: column '{name}' is {kind}, expected numbers", self.table);
        Ok(self.cast(name, &column, &DataType::Float32)?.as_primitive().clone())
    }

    /// A column of scores: numbers; null if something could not be scored.
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

    pub fn f32(&self, name: &str) -> Result<Float32Array> {
        let column = self.f32_or_null(name)?;
        self.refuse_null(name, &column)?;
        Ok(column)
    }

    /// A column of booleans, or of numbers where 0 is false; nulls stay null, and so does NaN, with which pandas marks them.
    pub fn bool_or_null(&self, name: &str) -> Result<BooleanArray> {
        let column = self.column(name)?;
        let kind = column.data_type();
        if kind.is_floating() {
            let numbers = self.f32_or_null(name)?;
            return Ok(numbers.iter().map(|x| x.filter(|x| !x.is_nan()).map(|x| x != 0.0)).collect());
        }
        ensure!(
            matches!(kind, DataType::Boolean | DataType::Null) || kind.is_integer(),
            "{}: column '{name}' is {kind}, expected booleans",
            self.table
        );
        Ok(self.cast(name, &column, &DataType::Boolean)?.as_boolean().clone())
    }

    /// A column of whole numbers that are not negative, without nulls. Floats are whole numbers too, where pandas made them.
    pub fn u64(&self, name: &str) -> Result<UInt64Array> {
        /// Above it a float skips whole numbers.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let column = self.column(name)?;
        let kind = column.data_type();
        let whole = kind.is_integer() || matches!(kind, DataType::Decimal128(_, 0) | DataType::Decimal256(_, 0));
        ensure!(whole || kind.is_floating(), "{}: column '{name}' is {kind}, expected whole numbers", self.table);
        if kind.is_floating() {
            let numbers = self.cast(name, &column, &DataType::Float64)?;
            let numbers = numbers.as_primitive::<Float64Type>();
            let broken = |i: &usize| {
                numbers.is_valid(*i) && !(0.0..=EXACT).contains(&numbers.value(*i)) | (numbers.value(*i).fract() != 0.0)
            };
            if let Some(i) = (0..numbers.len()).find(broken) {
                bail!("{}: column '{name}' is {}, expected a whole number", self.at(i), numbers.value(i));
            }
        }
        // A negative number becomes null in the cast, and is refused as null.
        let column = self.cast(name, &column, &DataType::UInt64)?.as_primitive().clone();
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
        let inner = match column.as_struct_opt() {
            Some(image) => match image.column_by_name("bytes") {
                Some(bytes) => {
                    self.refuse_paths(name, image, bytes)?;
                    bytes.clone()
                }
                None => bail!("{}: column '{name}' is a struct without a field 'bytes'", self.table),
            },
            None => column,
        };
        let hint = match inner.data_type() {
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                return Ok(self.cast(name, &inner, &DataType::Binary)?.as_binary::<i32>().clone());
            }
            DataType::Null => return Ok(BinaryArray::new_null(self.len())),
            DataType::Dictionary(_, values) if **values == DataType::Binary => {
                return Ok(self.cast(name, &inner, values)?.as_binary::<i32>().clone());
            }
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                "; put the bytes of the image in place of its path, URL or base64"
            }
            DataType::List(_) | DataType::LargeList(_) => "; make one row per image",
            _ => "",
        };
        bail!("{}: column '{name}' is {}, expected image bytes{hint}", self.table, inner.data_type())
    }

    /// Fails if an image has no bytes but a path: its pixels are in another file.
    fn refuse_paths(&self, name: &str, image: &StructArray, bytes: &ArrayRef) -> Result<()> {
        let Some(paths) = image.column_by_name("path").filter(|_| bytes.null_count() > 0) else { return Ok(()) };
        let paths = self.cast(name, paths, &DataType::Utf8)?;
        let paths = paths.as_string::<i32>();
        let only_path = |i: &usize| bytes.is_null(*i) && paths.is_valid(*i) && !paths.value(*i).is_empty();
        if let Some(i) = (0..paths.len()).find(only_path) {
            bail!(
                "{}: column '{name}' has no bytes, only the path '{}'; embed the images first (datasets: \
                 `ds.with_format(\"arrow\").map(embed_table_storage, batched=True)`)",
                self.at(i),
                shown(paths.value(i))
            );
        }
        Ok(())
    }

    fn refuse_null(&self, name: &str, column: &dyn Array) -> Result<()> {
        match (0..column.len()).find(|&i| column.is_null(i)) {
            Some(i) => bail!("{}: column '{name}' is null; every row needs a value", self.at(i)),
            None => Ok(()),
        }
    }

    pub fn slice(&self, offset: usize, len: usize) -> Self {
        Self { table: self.table.clone(), first: self.first + offset, batch: self.batch.slice(offset, len) }
    }
}

/// 16 bytes as a UUID is written.
fn uuid(bytes: &[u8]) -> String {
    [0..4, 4..6, 6..8, 8..10, 10..16].map(|group| hex(&bytes[group])).join("-")
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, FixedSizeBinaryArray, Float64Array, LargeStringArray, StringViewArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    fn rows(column: impl Array + 'static) -> Rows {
        let batch = RecordBatch::try_from_iter_with_nullable([("x", Arc::new(column) as ArrayRef, true)]).unwrap();
        Rows { table: "t".into(), first: 5, batch }
    }

    fn text(column: impl Array + 'static) -> Result<Vec<Option<String>>> {
        Ok(rows(column).text_or_null("x")?.iter().map(|x| x.map(str::to_owned)).collect())
    }

    fn some(texts: [&str; 2]) -> Vec<Option<String>> {
        texts.map(|x| Some(x.to_owned())).to_vec()
    }

    #[test]
    fn text_of_any_kind_is_text() {
        let expected = some(["1", "2"]);
        assert_eq!(text(LargeStringArray::from(vec!["1", "2"])).unwrap(), expected);
        assert_eq!(text(StringViewArray::from(vec!["1", "2"])).unwrap(), expected);
        assert_eq!(text(UInt64Array::from(vec![1, 2])).unwrap(), expected);
        assert_eq!(text(Float64Array::from(vec![1.0, 2.0])).unwrap(), expected);
        assert_eq!(text(["1", "2"].into_iter().collect::<DictionaryArray<Int32Type>>()).unwrap(), expected);
        assert_eq!(text(BinaryArray::from(vec![&b"1"[..], b"2"])).unwrap(), expected);
        assert_eq!(text(Float64Array::from(vec![2.5, f64::NAN])).unwrap(), [Some("2.5".to_owned()), None]);
        assert_eq!(text(BooleanArray::from(vec![true, false])).unwrap(), some(["true", "false"]));
        let uuid = FixedSizeBinaryArray::try_from_iter([[0x1fu8; 16], [0; 16]].iter()).unwrap();
        let names = some(["1f1f1f1f-1f1f-1f1f-1f1f-1f1f1f1f1f1f", "00000000-0000-0000-0000-000000000000"]);
        assert_eq!(text(uuid).unwrap(), names);
        let error = format!("{:#}", text(BinaryArray::from(vec![&b"1"[..], b"\xff"])).unwrap_err());
        assert!(error.contains("t, row 6") && error.contains("not UTF-8"), "{error}");
    }

    #[test]
    fn numbers_of_any_kind_are_numbers() {
        assert_eq!(rows(Float64Array::from(vec![0.0, 7.0])).u64("x").unwrap().values(), &[0, 7]);
        for (bad, what) in
            [(0.5, "row 6 (from 0): column 'x' is 0.5"), (-1.0, "is -1"), (1e18, "whole number"), (f64::NAN, "NaN")]
        {
            let error = rows(Float64Array::from(vec![0.0, bad])).u64("x").unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        assert_eq!(rows(BooleanArray::from(vec![true, false])).f32("x").unwrap().values(), &[1.0, 0.0]);
        let flags = rows(Float64Array::from(vec![1.0, 0.0, f64::NAN])).bool_or_null("x").unwrap();
        assert_eq!(flags, BooleanArray::from(vec![Some(true), Some(false), None]));
    }

    #[test]
    fn an_image_elsewhere_is_named() {
        let field = |name, kind| Arc::new(arrow::datatypes::Field::new(name, kind, true));
        let image = |bytes: BinaryArray| {
            let paths = StringArray::from(vec!["photos/0.jpg", "photos/1.jpg"]);
            StructArray::from(vec![
                (field("bytes", DataType::Binary), Arc::new(bytes) as ArrayRef),
                (field("path", DataType::Utf8), Arc::new(paths) as ArrayRef),
            ])
        };
        let error = rows(image(BinaryArray::new_null(2))).bytes("x").unwrap_err().to_string();
        assert!(error.contains("row 5") && error.contains("photos/0.jpg") && error.contains("embed"), "{error}");
        let one = image(BinaryArray::from(vec![Some(&b"a"[..]), None]));
        assert!(rows(one).bytes("x").unwrap_err().to_string().contains("photos/1.jpg"));
        let error = rows(StringArray::from(vec!["a.jpg"])).bytes("x").unwrap_err().to_string();
        assert!(error.contains("in place of its path"), "{error}");
    }
}
