//! From the fields of a record to pairs: which field is the caption, which are the images, and what people said of them.

use std::path::{Path, PathBuf};
use std::{fs, str::FromStr};

use anyhow::{Context, Result, bail, ensure};
use pipe::fields::{self, LISTS, Role};
use pipe::schema::pairs;
use pipe::text::shown;
use pipe::{id, place};

use crate::record::{Field, Record};

/// Two images of one caption.
#[derive(Debug)]
pub struct Pair {
    pub caption: String,
    pub images: [Vec<u8>; 2],
    /// The images' names in the source, if it has such.
    pub uids: [Option<String>; 2],
    pub models: [Option<String>; 2],
    /// From 0 to 1: how far image 0 is preferred.
    pub label: Option<f32>,
    pub ranking: Option<String>,
}

impl Pair {
    /// The name of image 0 or 1.
    pub fn uid(&self, side: usize) -> String {
        self.uids[side].clone().unwrap_or_else(|| id::image_uid(&self.images[side]))
    }
}

/// A field that was named by the user: `caption=my_prompt`.
#[derive(Clone, Debug)]
pub struct Renamed {
    role: Role,
    field: String,
}

impl FromStr for Renamed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (role, field) = text.split_once('=').ok_or("expected ROLE=FIELD, as caption=my_prompt")?;
        Ok(Self { role: role.parse()?, field: field.to_lowercase() })
    }
}

/// What says which image of a list is better: HPDv1's, HPDv2's and ImageReward's.
const PREFERENCE: &str = "human_preference";
const RANKS: [&str; 2] = ["rank", "ranking"];

/// How records are read.
pub struct Reader {
    pub renamed: Vec<Renamed>,
    /// Where relative paths begin.
    pub root: PathBuf,
    /// The table that is written, which must not be one of the images.
    pub output: PathBuf,
}

impl Reader {
    fn find<'a>(&self, record: &'a Record, role: Role) -> Option<&'a Field> {
        let named = self.renamed.iter().find(|renamed| renamed.role == role);
        match named {
            Some(renamed) => record.get(&renamed.field),
            None => role.names().iter().find_map(|name| record.get(name)),
        }
    }

    /// Whether fields of this name are looked at.
    pub fn knows(&self, name: &str) -> bool {
        let name = &*name.to_lowercase();
        let roles = [Role::Caption, Role::Zero, Role::One, Role::Label, Role::Winner, Role::Loser, Role::Image];
        let others = [
            &LISTS[..],
            &RANKS,
            &[PREFERENCE, pairs::HAS_LABEL, pairs::RANKING_ID],
            &pairs::UID,
            &MODELS[0],
            &MODELS[1],
        ];
        roles.iter().any(|role| role.names().contains(&name))
            || self.renamed.iter().any(|renamed| renamed.field == name)
            || others.concat().contains(&name)
    }

    pub fn caption(&self, record: &Record) -> Result<String> {
        let field = self.find(record, Role::Caption).and_then(Field::text);
        field.with_context(|| {
            format!(
                "{}: no caption among its fields ({}); call it `prompt` or `caption`, or add --columns caption=NAME",
                record.place,
                record.names()
            )
        })
    }

    /// The single image of a record.
    pub fn image(&self, record: &Record) -> Result<Vec<u8>> {
        let field = self.find(record, Role::Image).with_context(|| {
            format!(
                "{}: no image among its fields ({}); call it `image` or `file_name`, or add --columns image=NAME",
                record.place,
                record.names()
            )
        })?;
        self.bytes(record, field)
    }

    /// The pairs of a record: one, or with a ranking of more than two images one for each two that are not equal.
    pub fn pairs(&self, record: &Record) -> Result<Vec<Pair>> {
        let caption = self.caption(record)?;
        let text = |name: &str| record.get(name).and_then(Field::text);
        let pair = |[zero, one]: [&Field; 2], label: Option<f64>| -> Result<Pair> {
            if let Some(label) = label {
                ensure!(
                    (0.0..=1.0).contains(&label),
                    "{}: the label of image 0 is {label}; expected 1 (it is preferred), 0 (the other is) or 0.5 (neither)",
                    record.place
                );
            }
            Ok(Pair {
                caption: caption.clone(),
                images: [self.bytes(record, zero)?, self.bytes(record, one)?],
                uids: pairs::UID.map(text),
                models: MODELS.map(|names| names.iter().find_map(|name| text(name))),
                label: label.map(|label| label as f32),
                ranking: text(pairs::RANKING_ID),
            })
        };
        let both = |roles: [Role; 2]| Some([self.find(record, roles[0])?, self.find(record, roles[1])?]);
        let [by_number, by_rank] = fields::SIDES;
        if let Some(images) = both(by_number) {
            let asked = record.get(pairs::HAS_LABEL).and_then(Field::number) != Some(0.0);
            let label = self.find(record, Role::Label).filter(|_| asked);
            let label = match label {
                Some(field) => {
                    Some(field.number().with_context(|| format!("{}: label_0 is not a number", record.place))?)
                }
                None => None,
            };
            return Ok(vec![pair(images, label.filter(|label| !label.is_nan()))?]);
        }
        if let Some(images) = both(by_rank) {
            return Ok(vec![pair(images, Some(1.0))?]);
        }
        let list = LISTS.iter().find_map(|name| match record.get(name) {
            Some(Field::List(images)) => Some(images),
            _ => None,
        });
        let Some(images) = list else {
            bail!(
                "{}: no pair of images among its fields ({}); call them `winner` and `loser`, or `jpg_0`, `jpg_1` and `label_0`, or \
                 add --columns winner=NAME,loser=NAME; single images need --images",
                record.place,
                record.names()
            )
        };
        let order = ranks(record, images.len())?;
        let mut all = vec![];
        for i in 0..images.len() {
            for j in i + 1..images.len() {
                if order[i] != order[j] {
                    all.push(pair([&images[i], &images[j]], Some(f64::from(u8::from(order[i] < order[j]))))?);
                }
            }
        }
        Ok(all)
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        place::refuse_inputs(&self.output, [path])?;
        read(path)
    }

    /// The bytes of an image, which a field holds or names.
    fn bytes(&self, record: &Record, field: &Field) -> Result<Vec<u8>> {
        match field {
            Field::Bytes(bytes) => {
                ensure!(is_image(bytes), "{}: an image is neither JPEG, PNG nor WebP", record.place);
                Ok(bytes.clone())
            }
            Field::Text(path) => {
                ensure!(
                    !path.contains("://"),
                    "{}: '{}' is a URL: download the image first",
                    record.place,
                    shown(path)
                );
                self.read(&self.root.join(path)).with_context(|| record.place.clone())
            }
            Field::File(path) => self.read(path),
            _ => bail!("{}: an image is neither bytes nor a path", record.place),
        }
    }
}

/// Names of the models that drew the images.
const MODELS: [[&str; 2]; 2] = [["model_0", "model1"], ["model_1", "model2"]];

/// The rank of each of `n` images, the best first: `human_preference` (1 and 0 for each image, or the number of the best), or a rank
/// for each.
fn ranks(record: &Record, n: usize) -> Result<Vec<f64>> {
    let numbers = |field: &Field| -> Option<Vec<f64>> {
        match field {
            Field::List(list) => list.iter().map(Field::number).collect(),
            _ => None,
        }
    };
    let ranks = match (record.get(PREFERENCE), RANKS.iter().find_map(|name| record.get(name))) {
        (Some(best @ (Field::Number(_) | Field::Text(_))), _) => {
            let best = best.number().filter(|best| (0.0..n as f64).contains(best));
            best.map(|best| (0..n).map(|i| f64::from(u8::from(i as f64 != best))).collect())
        }
        (Some(field), _) => numbers(field).map(|votes| votes.into_iter().map(|vote| -vote).collect()),
        (None, Some(field)) => numbers(field),
        (None, None) => bail!(
            "{}: nothing says which of its {n} images is better; expected `{PREFERENCE}` or `rank` (fields: {})",
            record.place,
            record.names()
        ),
    };
    let ranks: Option<Vec<f64>> = ranks.filter(|ranks: &Vec<f64>| ranks.len() == n);
    ranks.with_context(|| {
        format!("{}: `{PREFERENCE}` or `rank` does not have one number for each of {n} images", record.place)
    })
}

/// The largest file that is taken for an image, in bytes: a hundred times what published sets hold.
const LARGEST: u64 = 1 << 28;

/// Reads an image file.
fn read(path: &Path) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let about = fs::metadata(path).with_context(cannot)?;
    ensure!(about.is_file(), "{} is not a file", path.display());
    ensure!(about.len() <= LARGEST, "{} has {} bytes, too many for an image", path.display(), about.len());
    let bytes = fs::read(path).with_context(cannot)?;
    ensure!(is_image(&bytes), "{} is neither JPEG, PNG nor WebP", path.display());
    Ok(bytes)
}

fn is_image(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\xff\xd8\xff")
        || bytes.starts_with(b"\x89PNG\r\n\x1a\n")
        || (bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP"))
}
