//! The key of a pair of images: caption, both uids, and `ranking_id` if a table has one; and its human label.

use anyhow::{Result, bail};
use arrow::array::{Array, Float32Array, StringArray};

use crate::schema::{labels, pairs};
use crate::{column::Rows, id, image_keys, table::Inputs};

/// The columns that name pairs, one row per pair.
pub struct PairKeys {
    pub captions: StringArray,
    pub uids: [StringArray; 2],
    pub ids: StringArray,
}

impl PairKeys {
    /// The columns that `of` reads in these tables: `pair_id` if they name pairs, the images if these have no uids. A table that
    /// holds the images may have any column `pair_id`.
    pub fn columns(inputs: &Inputs) -> Vec<&'static str> {
        let mut columns = vec![pairs::CAPTION, pairs::RANKING_ID, pairs::UID[0], pairs::UID[1]];
        columns.extend((!inputs.has(pairs::JPG[0])).then_some(labels::PAIR_ID));
        let sides = pairs::UID.into_iter().zip(pairs::JPG);
        columns.extend(sides.filter(|(uid, _)| !inputs.has(uid)).map(|(_, jpg)| jpg));
        columns
    }

    /// The keys of pairs with these `captions` (null counts as empty). A table's own uids and `pair_id` hold; where there are
    /// none, they are computed.
    pub fn of(rows: &Rows, captions: StringArray) -> Result<Self> {
        let uids = [0, 1].map(|side| image_keys::uids(rows, pairs::UID[side], pairs::JPG[side]));
        let [uid_0, uid_1] = uids;
        let uids = [uid_0?, uid_1?];
        let ids = match rows.has(labels::PAIR_ID) {
            true => rows.text(labels::PAIR_ID)?,
            false => {
                let rankings = rows.text_if_there(pairs::RANKING_ID)?;
                let ranking = |i| if rankings.is_valid(i) { rankings.value(i) } else { "" };
                let caption = |i| if captions.is_valid(i) { captions.value(i) } else { "" };
                let id = |i| id::pair_id(caption(i), uids[0].value(i), uids[1].value(i), ranking(i));
                StringArray::from_iter_values((0..rows.len()).map(id))
            }
        };
        Ok(Self { captions, uids, ids })
    }

    /// A name that does not depend on which image comes first, so that swapping images and label changes no draw.
    pub fn unordered_id(&self, i: usize) -> String {
        let mut uids = [self.uids[0].value(i), self.uids[1].value(i)];
        uids.sort_unstable();
        id::pair_id(self.captions.value(i), uids[0], uids[1], "")
    }
}

/// The human label of image 0, from 0 to 1; null if there is none: the label is null or NaN, with which pandas marks a missing
/// number, or `has_label` is false.
pub fn human_labels(rows: &Rows) -> Result<Float32Array> {
    if !rows.has(pairs::LABEL[0]) {
        return Ok(Float32Array::new_null(rows.len()));
    }
    let labels = rows.f32_or_null(pairs::LABEL[0])?;
    let asked = if rows.has(pairs::HAS_LABEL) { Some(rows.bool_or_null(pairs::HAS_LABEL)?) } else { None };
    let asked = |i| asked.as_ref().is_none_or(|asked| asked.is_null(i) || asked.value(i));
    let given = |i: usize| (labels.is_valid(i) && asked(i)).then(|| labels.value(i)).filter(|label| !label.is_nan());
    if let Some(i) = (0..labels.len()).find(|&i| given(i).is_some_and(|label| !(0.0..=1.0).contains(&label))) {
        bail!(
            "{}: {} is {}, expected 1 (image 0 is preferred), 0 (image 1) or 0.5 (neither); make a missing label null",
            rows.at(i),
            pairs::LABEL[0],
            labels.value(i)
        );
    }
    Ok((0..labels.len()).map(given).collect())
}
