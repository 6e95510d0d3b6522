//! Decoding: the pixels that Pillow's `Image.open(file).convert('RGB')` gives, to the bit.
//!
//! EXIF orientation, ICC profiles and gamma are ignored and alpha is dropped, as in Pillow (and transformers 4.30). What a file
//! holds beyond RGB is kept beside it in [`Stored`], for peers that resize an image in the file's own mode.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::{self, BufRead, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::codecs::{png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, Limits};
use mozjpeg::{ColorSpace, Decompress};

use super::Rgb;

/// The largest image that is decoded, in pixels: Pillow's limit for a decompression bomb (twice its MAX_IMAGE_PIXELS).
pub const MAX_PIXELS: usize = 2 * 89_478_485;

/// A decoded image, and the part of its file that RGB does not hold.
pub struct Stored {
    pub rgb: Rgb,
    pub beyond: Beyond,
}

/// The data that Pillow's mode of an image has beyond its RGB pixels. All planes are (H, W).
pub enum Beyond {
    /// Nothing: the mode is RGB, or grey of 8 bits.
    Nothing,
    /// A palette, or one bit per pixel: such an image is only resized by nearest neighbour.
    Palette,
    /// Opacity, a byte per pixel.
    Alpha(Vec<u8>),
    /// Cyan, magenta, yellow and black in place of RGB, four bytes per pixel.
    Cmyk(Vec<u8>),
    /// Grey of 16 bits, where RGB holds it clipped to 255.
    Grey16(Vec<u16>),
}

/// Whether what lies beyond RGB is kept: its planes take as much memory as the pixels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Rgb,
    All,
}

/// Decodes a JPEG, PNG or WebP, recognised by its content.
pub fn decode(bytes: &[u8]) -> Result<Rgb> {
    Ok(decode_as(bytes, Keep::Rgb)?.rgb)
}

/// [`decode`] with what the file holds beyond RGB.
pub fn decode_stored(bytes: &[u8]) -> Result<Stored> {
    decode_as(bytes, Keep::All)
}

fn decode_as(bytes: &[u8], keep: Keep) -> Result<Stored> {
    if bytes.starts_with(&[0xff, 0xd8]) {
        jpeg(bytes, keep).context("the JPEG cannot be decoded")
    } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        // Pillow reads I;16 to RGB by clipping, not by shifting.
        let whole = with_end_mark(bytes);
        PngDecoder::with_limits(Cursor::new(&whole[..]), png_limits())
            .map_err(Into::into)
            .and_then(|png| pixels(png, PngKind::of(bytes), keep))
            .context("the PNG cannot be decoded")
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        WebPDecoder::new(Cursor::new(bytes))
            .map_err(Into::into)
            .and_then(|webp| pixels(webp, PngKind::Other, keep))
            .context("the WebP cannot be decoded")
    } else if bytes.is_empty() {
        bail!("there are no bytes to decode")
    } else {
        bail!("it is neither JPEG, PNG nor WebP (it begins with {:02x?})", &bytes[..bytes.len().min(4)])
    }
}

/// Bytes that a picture's raw pixels may take: four for each of [`MAX_PIXELS`]. 16-bit colours reach it sooner.
const MAX_BYTES: u64 = 4 * MAX_PIXELS as u64;

/// The memory that a PNG's chunks beside the pixels may take: a colour profile and texts, which are not used. Profiles have some
/// kilobytes, or some megabytes where they hold tables for printers.
fn png_limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(64 << 20);
    limits
}

fn check_size(width: usize, height: usize) -> Result<()> {
    ensure!(width > 0 && height > 0, "it has no pixels ({width} x {height})");
    let pixels = width.saturating_mul(height);
    ensure!(
        pixels <= MAX_PIXELS,
        "it claims {width} x {height} = {pixels} pixels, more than the {MAX_PIXELS} that are decoded"
    );
    Ok(())
}

/// A PNG with its end mark. A file that was cut off behind its last row is read, as by Pillow; the decoder notices missing rows.
fn with_end_mark(bytes: &[u8]) -> Cow<'_, [u8]> {
    // A chunk: the length of its data, its name, the data, a checksum of both. The first follows the signature.
    let (mut at, mut cut_off) = (8, &[][..]);
    while let Some(&[a, b, c, d, ref name @ ..]) = bytes[at..].first_chunk::<8>() {
        if name == b"IEND" {
            return Cow::Borrowed(bytes);
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if bytes.len() - at < 12 + length {
            let data = &bytes[at + 8..];
            cut_off = if name == b"IDAT" { &data[..length.min(data.len())] } else { &[] };
            break;
        }
        at += 12 + length;
    }
    let mut whole = bytes[..at].to_vec();
    let mut append = |name: &[u8], data: &[u8]| {
        let body = [name, data].concat();
        whole.extend((data.len() as u32).to_be_bytes());
        whole.extend(&body);
        whole.extend(crc32fast::hash(&body).to_be_bytes());
    };
    if !cut_off.is_empty() {
        append(b"IDAT", cut_off);
    }
    append(b"IEND", &[]);
    Cow::Owned(whole)
}

/// Facts in the header of a PNG that the decoder does not report: it expands palettes and single bits, and makes an alpha channel of
/// a transparent level (tRNS), which Pillow does not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PngKind {
    /// Grey without an alpha channel.
    Grey,
    /// A palette, or one bit per pixel.
    Palette,
    /// RGB without an alpha channel.
    Rgb,
    Other,
}

impl PngKind {
    fn of(bytes: &[u8]) -> Self {
        // Bit depth and colour type come after the signature, the chunk's length and name, width and height.
        match bytes.get(24..26) {
            Some([_, 3] | [1, 0]) => Self::Palette,
            Some([_, 0]) => Self::Grey,
            Some([_, 2]) => Self::Rgb,
            _ => Self::Other,
        }
    }
}

/// The pixels of any decoder of the `image` crate. 16-bit grey is clipped to 8 bits, not shifted. 16-bit colour and grey with
/// alpha keep their high bytes, as in Pillow's raw modes `RGB;16B` and `LA;16B`.
fn pixels(decoder: impl ImageDecoder, kind: PngKind, keep: Keep) -> Result<Stored> {
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_size(width, height)?;
    let color = decoder.color_type();
    let bytes = decoder.total_bytes();
    ensure!(
        bytes <= MAX_BYTES,
        "its {width} x {height} pixels take {bytes} bytes, more than the {MAX_BYTES} that are decoded"
    );
    let mut raw = vec![0; usize::try_from(bytes)?];
    catch_unwind(AssertUnwindSafe(|| decoder.read_image(&mut raw))).map_err(|_| anyhow!("its decoder gave up"))??;
    let deep = |pair: &[u8]| u16::from_ne_bytes([pair[0], pair[1]]);
    let high = |pair: &[u8]| (deep(pair) >> 8) as u8;
    let clipped = |pair: &[u8]| deep(pair).min(255) as u8;
    let is_grey = kind == PngKind::Grey;
    let plane = |step: usize, of: &dyn Fn(&[u8]) -> u8| raw.chunks_exact(step).map(of).collect::<Vec<u8>>();
    let beyond = match color {
        _ if keep == Keep::Rgb => Beyond::Nothing,
        _ if kind == PngKind::Palette => Beyond::Palette,
        ColorType::L16 => Beyond::Grey16(raw.chunks_exact(2).map(deep).collect()),
        ColorType::La16 if is_grey => Beyond::Grey16(raw.chunks_exact(4).map(deep).collect()),
        _ if is_grey || kind == PngKind::Rgb => Beyond::Nothing,
        ColorType::La8 => Beyond::Alpha(plane(2, &|p| p[1])),
        ColorType::Rgba8 => Beyond::Alpha(plane(4, &|p| p[3])),
        ColorType::La16 => Beyond::Alpha(plane(4, &|p| high(&p[2..]))),
        ColorType::Rgba16 => Beyond::Alpha(plane(8, &|p| high(&p[6..]))),
        _ => Beyond::Nothing,
    };
    let data = match color {
        ColorType::Rgb8 => raw,
        ColorType::L8 => to_rgb(raw.chunks_exact(1), |p| [p[0]; 3]),
        ColorType::La8 => to_rgb(raw.chunks_exact(2), |p| [p[0]; 3]),
        ColorType::Rgba8 => in_place(raw, |p: [u8; 4]| [p[0], p[1], p[2]]),
        ColorType::L16 => to_rgb(raw.chunks_exact(2), |p| [clipped(p); 3]),
        ColorType::La16 if is_grey => in_place(raw, |p: [u8; 4]| [clipped(&p); 3]),
        ColorType::La16 => in_place(raw, |p: [u8; 4]| [high(&p); 3]),
        ColorType::Rgb16 => in_place(raw, |p: [u8; 6]| [high(&p), high(&p[2..]), high(&p[4..])]),
        ColorType::Rgba16 => in_place(raw, |p: [u8; 8]| [high(&p), high(&p[2..]), high(&p[4..])]),
        other => bail!("its pixels are {other:?}, which is not supported"),
    };
    Ok(Stored { rgb: Rgb { width, height, data }, beyond })
}

fn to_rgb<'a>(pixels: impl Iterator<Item = &'a [u8]>, rgb: impl Fn(&[u8]) -> [u8; 3]) -> Vec<u8> {
    pixels.flat_map(rgb).collect()
}

/// Pixels of N bytes, more than three, become three: in the same memory, which a large picture has no second of.
fn in_place<const N: usize>(mut raw: Vec<u8>, rgb: impl Fn([u8; N]) -> [u8; 3]) -> Vec<u8> {
    let count = raw.len() / N;
    for i in 0..count {
        let pixel = std::array::from_fn(|k| raw[i * N + k]);
        raw[3 * i..][..3].copy_from_slice(&rgb(pixel));
    }
    raw.truncate(3 * count);
    raw.shrink_to_fit();
    raw
}

/// Decodes with libjpeg-turbo's arithmetic (islow DCT, fancy upsampling), which Pillow uses.
fn jpeg(bytes: &[u8], keep: Keep) -> Result<Stored> {
    check_scans(bytes)?;
    let ended = Cell::new(false);
    // libjpeg reports an error by unwinding with its message. The panic hook is not called, so nothing is printed.
    let decoded = catch_unwind(AssertUnwindSafe(|| jpeg_unwinding(Reader { rest: bytes, ended: &ended }, keep)));
    decoded.map_err(|cause| match cause.downcast::<String>() {
        Ok(message) => anyhow!("{}", message.trim_start_matches("libjpeg fatal error: ")),
        Err(_) => anyhow!("libjpeg gave up"),
    })?
}

/// Scans that any picture may have. Encoders write ten at most, and fuzzers of libjpeg-turbo allow 500.
const MAX_SCANS: usize = 500;

/// Pixels times scans of a picture with more scans than encoders write: a second or two of work.
const MAX_WORK: usize = 1_000_000_000;

/// A JPEG of many scans takes minutes: each goes through all its coefficients, however few bytes it has.
fn check_scans(bytes: &[u8]) -> Result<()> {
    let (scans, pixels) = scans(bytes);
    ensure!(
        scans <= 16 || (scans <= MAX_SCANS && pixels.saturating_mul(scans) <= MAX_WORK),
        "it has {scans} scans of {pixels} pixels; encoders write ten at most"
    );
    Ok(())
}

/// The number of scans up to the end mark, and the pixels that the frame header claims.
fn scans(bytes: &[u8]) -> (usize, usize) {
    let (mut at, mut scans, mut pixels) = (2, 0, 0);
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff)) {
        at += found + 1;
        let marker = bytes.get(at).copied().unwrap_or_default();
        match marker {
            0xff => continue,                // fill
            0x00 | 0x01 | 0xd0..=0xd8 => (), // a byte of the picture, or a mark without content
            0xd9 => break,
            _ => {
                let number = |i: usize| Some(usize::from(u16::from_be_bytes([*bytes.get(i)?, *bytes.get(i + 1)?])));
                // SOF0 to SOF15 except DHT, JPG and DAC: precision, height, width.
                if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
                    pixels = number(at + 4).unwrap_or(0) * number(at + 6).unwrap_or(0);
                }
                scans += usize::from(marker == 0xda);
                at += number(at + 1).unwrap_or(0).max(2) - 1;
            }
        }
        at += 1;
    }
    (scans, pixels)
}

/// [`jpeg`], which may unwind.
fn jpeg_unwinding(reader: Reader<'_>, keep: Keep) -> Result<Stored> {
    let ended = reader.ended;
    let header = Decompress::new_reader(reader)?;
    let (width, height) = header.size();
    check_size(width, height)?;
    let (channels, space) = match header.components().len() {
        1 => (1, ColorSpace::JCS_GRAYSCALE),
        3 => (3, ColorSpace::JCS_RGB),
        4 => (4, ColorSpace::JCS_CMYK),
        n => bail!("it has {n} colour channels, which is not supported"),
    };
    let mut started = header.to_colorspace(space)?;
    let mut raw = vec![0; width * height * channels];
    started.read_scanlines_into(&mut raw)?;
    // libjpeg fills missing rows with grey; Pillow refuses such a file. It reads one that has all rows and no end mark.
    ensure!(!ended.get(), "it is truncated");
    let (data, beyond) = match channels {
        3 => (raw, Beyond::Nothing),
        1 => (to_rgb(raw.chunks_exact(1), |p| [p[0]; 3]), Beyond::Nothing),
        _ => {
            raw.iter_mut().for_each(|v| *v = 255 - *v); // Adobe stores it inverted
            let data = to_rgb(raw.chunks_exact(4), cmyk_to_rgb);
            (data, if keep == Keep::All { Beyond::Cmyk(raw) } else { Beyond::Nothing })
        }
    };
    Ok(Stored { rgb: Rgb { width, height, data }, beyond })
}

/// Pillow's `cmyk2rgb` (Convert.c): no colour management.
pub(super) fn cmyk_to_rgb(p: &[u8]) -> [u8; 3] {
    let white = u32::from(255 - p[3]);
    [0, 1, 2].map(|c| (white - u32::from(muldiv255(p[c], white as u8))) as u8)
}

/// `a * b / 255`, rounded as by Pillow's MULDIV255.
pub(super) fn muldiv255(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// A byte slice that remembers whether it was read past its end.
struct Reader<'a> {
    rest: &'a [u8],
    ended: &'a Cell<bool>,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.rest.read(buf)
    }
}

impl BufRead for Reader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.ended.set(true);
        }
        Ok(self.rest)
    }

    fn consume(&mut self, n: usize) {
        self.rest.consume(n);
    }
}
