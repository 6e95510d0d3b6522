//! What names a pair of images: caption, both uids, and `ranking_id` where a table has one.

use anyhow::Result;
use arrow::array::{Array, StringArray};

use crate::schema::{labels, pairs};
use crate::{column::Rows, id};

/// The columns that name pairs, one row per pair.
pub struct PairKeys {
    pub captions: StringArray,
    pub uids: [StringArray; 2],
    pub ids: StringArray,
}

impl PairKeys {
    /// What `of` looks at.
    pub const COLUMNS: [&str; 5] = [pairs::CAPTION, pairs::UID[0], pairs::UID[1], pairs::RANKING_ID, labels::PAIR_ID];

    /// The keys of pairs with these `captions` (null counts as empty). A table's own `pair_id` holds; where there is none, it is
    /// computed.
    pub fn of(rows: &Rows, captions: StringArray) -> Result<Self> {
        let uids = [rows.text(pairs::UID[0])?, rows.text(pairs::UID[1])?];
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
