//! The two kinds of tables that can be scored, and the columns of the output for each.

use std::sync::Arc;

use anyhow::{Result, bail};
use arrow::array::{Array, ArrayRef, BinaryArray, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::{Schema, SchemaRef};
use nets::scorer::{Metric, Role};
use pipe::pairs::{PairKeys, human_labels};
use pipe::schema::{self, images, pairs, prompts};
use pipe::{column::Rows, image_keys, table::Inputs};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two images per row; the output is a scores table.
    Pairs,
    /// One image per row; the output is a scored table.
    Images,
}

impl Kind {
    pub fn of(inputs: &Inputs) -> Result<Self> {
        if inputs.has(images::IMAGE) {
            inputs.require(&image_keys::NEEDED, "expected an images table, as `sample` writes it")?;
            return Ok(Self::Images);
        }
        if ![pairs::JPG[0], pairs::JPG[1], pairs::CAPTION].iter().any(|c| inputs.has(c)) {
            bail!(
                "{} is neither a pairs table (columns {}) nor an images table (columns {})",
                inputs.name(),
                pairs::NEEDED.join(", "),
                image_keys::NEEDED.join(", ")
            );
        }
        inputs.require(&pairs::NEEDED, "expected a pairs table with Pick-a-Pic's columns")?;
        Ok(Self::Pairs)
    }

    pub fn image_columns(self) -> &'static [&'static str] {
        match self {
            Self::Pairs => &pairs::JPG,
            Self::Images => &[images::IMAGE],
        }
    }

    pub fn caption_column(self) -> &'static str {
        match self {
            Self::Pairs => pairs::CAPTION,
            Self::Images => prompts::PROMPT,
        }
    }

    pub fn columns(self) -> Vec<&'static str> {
        match self {
            Self::Pairs => {
                let optional = [pairs::RANKING_ID, pairs::LABEL[0], pairs::HAS_LABEL];
                [&pairs::NEEDED[..], &pairs::UID, &optional].concat()
            }
            Self::Images => [&image_keys::NEEDED[..], &image_keys::COLUMNS].concat(),
        }
    }

    pub fn schema(self, metrics: &[&Metric]) -> Schema {
        let names: Vec<String> = metrics.iter().map(|m| m.name.to_owned()).collect();
        let judges: Vec<&str> = metrics.iter().filter(|m| m.role == Role::Judge).map(|m| m.name).collect();
        let schema = match self {
            Self::Pairs => schema::scores(&names),
            Self::Images => schema::scored(&names),
        };
        schema::with_judges(schema, &judges)
    }

    pub fn score_columns(self, metrics: &[String]) -> Vec<String> {
        let of = |m: &String| match self {
            Self::Pairs => vec![format!("{m}_0"), format!("{m}_1")],
            Self::Images => vec![m.clone()],
        };
        metrics.iter().flat_map(of).collect()
    }

    /// Rows of the output: keys and scores. `scores` has one list per metric, in the order of `Places`.
    pub fn table(self, schema: &SchemaRef, rows: &Rows, scores: &[Vec<Option<f32>>]) -> Result<RecordBatch> {
        let mut columns = self.keys(rows)?;
        let sides = self.image_columns().len();
        for scores in scores {
            columns.extend((0..sides).map(|side| -> ArrayRef {
                Arc::new(scores.iter().skip(side).step_by(sides).copied().collect::<Float32Array>())
            }));
        }
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }

    /// The columns before the scores. A null caption becomes an empty one.
    fn keys(self, rows: &Rows) -> Result<Vec<ArrayRef>> {
        let captions = rows.text_or_null(self.caption_column())?;
        let captions = StringArray::from_iter_values(captions.iter().map(Option::unwrap_or_default));
        match self {
            Self::Pairs => {
                let PairKeys { captions, uids: [uid_0, uid_1], ids } = PairKeys::of(rows, captions)?;
                let label_0 = human_labels(rows)?;
                Ok(vec![Arc::new(ids), Arc::new(captions), Arc::new(uid_0), Arc::new(uid_1), Arc::new(label_0)])
            }
            Self::Images => image_keys::of(rows, captions),
        }
    }
}

/// The images of some rows with their captions, row by row, image 0 before image 1.
pub struct Places {
    kind: Kind,
    images: Vec<BinaryArray>,
    captions: StringArray,
}

/// One image, where it stands, and its caption.
pub struct Place<'a> {
    pub row: usize,
    pub column: &'static str,
    pub image: Option<&'a [u8]>,
    pub caption: Option<&'a str>,
}

impl Places {
    pub fn of(kind: Kind, rows: &Rows) -> Result<Self> {
        let images = kind.image_columns().iter().map(|c| rows.bytes(c)).collect::<Result<_>>()?;
        Ok(Self { kind, images, captions: rows.text_or_null(kind.caption_column())? })
    }

    pub fn iter(&self) -> impl Iterator<Item = Place<'_>> {
        (0..self.captions.len()).flat_map(move |row| {
            let caption = self.captions.is_valid(row).then(|| self.captions.value(row));
            self.images.iter().zip(self.kind.image_columns()).map(move |(images, column)| Place {
                row,
                column,
                image: images.is_valid(row).then(|| images.value(row)),
                caption,
            })
        })
    }
}
