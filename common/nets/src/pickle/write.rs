//! Writing torch's zip pickles, as `torch.save` does.

use std::{io::Write, path::Path};

use anyhow::{Context, Result, bail};
use candle_core::DType;
use pipe::atomic::AtomicFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Writes a dict of tensors, whose numbers are made as they are written, as [`crate::write::stream`] does for safetensors. `under`: the
/// key of an outer dict that holds the dict.
pub fn stream(
    path: &Path,
    tensors: &[(&str, DType, &[usize])],
    under: Option<&str>,
    mut write: impl FnMut(&str, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let pickle = pickle(tensors, under)?;
    let mut zip = ZipWriter::new_stream(AtomicFile::create(path)?);
    let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, content) in [("data.pkl", &pickle[..]), ("byteorder", b"little"), ("version", b"3\n")] {
        zip.start_file(format!("archive/{name}"), plain).with_context(cannot)?;
        zip.write_all(content).with_context(cannot)?;
    }
    for (i, (name, dtype, shape)) in tensors.iter().enumerate() {
        let large = shape.iter().product::<usize>() * dtype.size_in_bytes() > u32::MAX as usize;
        zip.start_file(format!("archive/data/{i}"), plain.large_file(large)).with_context(cannot)?;
        write(name, &mut zip).with_context(cannot)?;
    }
    zip.finish().with_context(cannot)?.into_inner().commit()
}

/// The pickle, in protocol 2: storage `i` belongs to tensor `i`.
fn pickle(tensors: &[(&str, DType, &[usize])], under: Option<&str>) -> Result<Vec<u8>> {
    let mut out = b"\x80\x02}".to_vec(); // PROTO 2, EMPTY_DICT
    if let Some(key) = under {
        text(&mut out, key)?;
        out.push(b'}');
    }
    out.push(b'('); // MARK: pairs of keys and values follow
    for (i, (name, dtype, shape)) in tensors.iter().enumerate() {
        let class = match dtype {
            DType::F32 => "FloatStorage",
            DType::F16 => "HalfStorage",
            DType::BF16 => "BFloat16Storage",
            other => bail!("tensor '{name}' holds {other:?}, which is not written in torch's files"),
        };
        text(&mut out, name)?;
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(("); // GLOBAL, and MARK of the arguments and of the storage
        text(&mut out, "storage")?;
        out.extend(format!("ctorch\n{class}\n").as_bytes());
        text(&mut out, &i.to_string())?;
        text(&mut out, "cpu")?;
        number(&mut out, shape.iter().product())?;
        out.extend(b"tQ"); // TUPLE, BINPERSID: the storage
        number(&mut out, 0)?; // where the tensor begins in it
        tuple(&mut out, shape)?;
        tuple(&mut out, &strides(shape))?;
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR"); // NEWFALSE: no gradient; no hooks; the call
    }
    out.push(b'u'); // SETITEMS
    if under.is_some() {
        out.push(b's'); // SETITEM
    }
    out.push(b'.');
    Ok(out)
}

fn text(out: &mut Vec<u8>, text: &str) -> Result<()> {
    out.push(b'X'); // BINUNICODE
    out.extend(u32::try_from(text.len())?.to_le_bytes());
    out.extend(text.as_bytes());
    Ok(())
}

fn number(out: &mut Vec<u8>, number: usize) -> Result<()> {
    out.push(b'J'); // BININT
    out.extend(i32::try_from(number).context("a tensor of more than 2^31 elements is not written")?.to_le_bytes());
    Ok(())
}

fn tuple(out: &mut Vec<u8>, numbers: &[usize]) -> Result<()> {
    out.push(b'(');
    numbers.iter().try_for_each(|n| number(out, *n))?;
    out.push(b't');
    Ok(())
}

fn strides(shape: &[usize]) -> Vec<usize> {
    (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect()
}
