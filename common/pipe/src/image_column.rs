//! How columns of images are written: as bytes, or as `datasets` of Hugging Face writes them, so that it and the hub's viewer show
//! pictures. Both are read everywhere.

use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use serde_json::{Map, Value, json};

crate::names! {
    /// How images stand in a table.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ImageColumn {
        /// The bytes of the file
        Bytes = "bytes",
        /// Hugging Face's struct {bytes, path}: `load_dataset` and the hub's viewer show pictures
        Datasets = "datasets",
    }
}

/// Metadata of a schema: which columns are more than their Arrow type says.
const FEATURES: &str = "huggingface";

impl ImageColumn {
    /// The schema, whose binary columns are images.
    pub fn schema(self, schema: Schema) -> Schema {
        if self == Self::Bytes {
            return schema;
        }
        let mut features = Map::new();
        let mut field = |field: &FieldRef| -> FieldRef {
            if *field.data_type() != DataType::Binary {
                return field.clone();
            }
            features.insert(field.name().clone(), json!({ "_type": "Image" }));
            // `datasets` knows the type only where it may be null.
            Arc::new(Field::new(field.name(), DataType::Struct(parts()), true))
        };
        let fields: Vec<FieldRef> = schema.fields().iter().map(&mut field).collect();
        let features = json!({ "info": { "features": Value::Object(features) } });
        let metadata = schema.metadata().clone().with(FEATURES, features.to_string());
        Schema::new(fields).with_metadata(metadata)
    }

    /// Rows of the plain schema as rows of `schema`, which [`ImageColumn::schema`] made.
    pub fn batch(self, batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
        let column = |(column, field): (&ArrayRef, &FieldRef)| -> Result<ArrayRef> {
            if column.data_type() == field.data_type() {
                return Ok(column.clone());
            }
            let paths: ArrayRef = Arc::new(StringArray::new_null(column.len()));
            Ok(Arc::new(StructArray::try_new(parts(), vec![column.clone(), paths], None)?))
        };
        let columns = batch.columns().iter().zip(schema.fields()).map(column).collect::<Result<_>>()?;
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

fn parts() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}
