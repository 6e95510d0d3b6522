//! Folders of images: two folders whose files have equal names, or one with a text beside each image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use pipe::fields::{LOSERS, WINNERS};

use crate::pair::Reader;
use crate::record::{Field, Record};
use crate::source::Take;

const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// How the texts beside images end.
const TEXTS: [&str; 2] = ["txt", "caption"];
/// Bytes of a caption, as of a field of CSV: far more than a text encoder reads.
const LONGEST: u64 = 1 << 20;

/// The folders of winners and losers in `folder`, if it has such.
pub fn sides(folder: &Path) -> Result<Option<[PathBuf; 2]>> {
    let pair = |(winner, loser): (&&str, &&str)| [folder.join(winner), folder.join(loser)];
    let all = WINNERS.iter().zip(&LOSERS).map(pair);
    let mut found: Vec<_> = all.filter(|[winner, loser]| winner.is_dir() && loser.is_dir()).collect();
    if let [one, other, ..] = &found[..] {
        bail!(
            "{} and {} are both folders of winners: name a folder that holds one of them",
            one[0].display(),
            other[0].display()
        );
    }
    Ok(found.pop())
}

/// Pairs of the images that have the same name in both folders. A caption is the text beside either, or in `folder`.
pub fn pairs(folder: &Path, [winners, losers]: &[PathBuf; 2], reader: &Reader, take: &mut Take) -> Result<bool> {
    let (won, lost) = (images(winners)?, images(losers)?);
    let stem =
        |path: &PathBuf, side: &Path| path.strip_prefix(side).map(|path| path.with_extension("")).unwrap_or_default();
    let mut others: std::collections::BTreeMap<PathBuf, PathBuf> =
        lost.into_iter().map(|path| (stem(&path, losers), path)).collect();
    for winner in won {
        let stem = stem(&winner, winners);
        let loser = others.remove(&stem);
        let record = || {
            let alone = || format!("{} has no counterpart in {}", winner.display(), losers.display());
            let loser = loser.with_context(alone)?;
            let beside = [winners.join(&stem), losers.join(&stem), folder.join(&stem)];
            let caption = beside.iter().find_map(|path| text_beside(path).transpose()).transpose()?;
            let none = || format!("{} has no caption: put {}.txt beside it", winner.display(), stem.display());
            let mut record = Record::new(winner.display().to_string());
            record.push("caption", Field::Text(caption.with_context(none)?));
            record.push("winner", Field::File(winner));
            record.push("loser", Field::File(loser));
            Ok(record)
        };
        if !take(reader, record())? {
            return Ok(false);
        }
    }
    for left in others.into_values() {
        if !take(reader, Err(anyhow!("{} has no counterpart in {}", left.display(), winners.display())))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Single images with the text beside each.
pub fn singles(folder: &Path, reader: &Reader, take: &mut Take) -> Result<bool> {
    for path in images(folder)? {
        let record = || {
            let stem = path.with_extension("");
            let none = || format!("{} has no text: put {}.txt beside it", path.display(), stem.display());
            let text = text_beside(&stem)?.with_context(none)?;
            let mut record = Record::new(path.display().to_string());
            record.push("caption", Field::Text(text));
            record.push("image", Field::File(path));
            Ok(record)
        };
        if !take(reader, record())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The text in `path.txt`, without the white space around it.
fn text_beside(path: &Path) -> Result<Option<String>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    for ending in TEXTS {
        let mut file = name.clone();
        file.push(ending);
        let file = PathBuf::from(file);
        if file.is_file() {
            let cannot = || format!("cannot read {}", file.display());
            let size = fs::metadata(&file).with_context(cannot)?.len();
            ensure!(size <= LONGEST, "{} has {size} bytes, too many for a caption", file.display());
            let text = fs::read_to_string(&file).with_context(cannot)?;
            return Ok(Some(text.trim().to_owned()));
        }
    }
    Ok(None)
}

/// All images in a folder and below it, in the order of their names.
fn images(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![];
    collect(folder, &mut found)?;
    ensure!(
        !found.is_empty(),
        "{} holds no image ({})",
        folder.display(),
        ENDINGS.map(|end| format!(".{end}")).join(", ")
    );
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let cannot = || format!("cannot read {}", folder.display());
    let mut entries = vec![];
    for entry in fs::read_dir(folder).with_context(cannot)? {
        entries.push(entry.with_context(cannot)?.path());
    }
    entries.sort();
    for path in entries {
        // Names that begin with a point are of other programs.
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if hidden {
            continue;
        }
        if path.is_dir() {
            collect(&path, found)?;
        } else if ENDINGS.contains(&&*ending) {
            found.push(path);
        }
    }
    Ok(())
}
