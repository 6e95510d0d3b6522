//! Decoding: the pixels that Pillow's `Image.open(file).convert('RGB')` gives, to the bit.
//!
//! EXIF orientation, ICC profiles and gamma are ignored and alpha is dropped, as in Pillow (and transformers 4.30).

use std::cell::Cell;
use std::io::{self, BufRead, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::codecs::{png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, Limits};
use mozjpeg::{ColorSpace, Decompress, decompress::DecompressStarted};

use super::Rgb;

/// The largest image that is decoded, in pixels: Pillow's limit for a decompression bomb (twice its MAX_IMAGE_PIXELS).
pub const MAX_PIXELS: usize = 2 * 89_478_485;

/// Decodes a JPEG, PNG or WebP, recognised by its content.
pub fn decode(bytes: &[u8]) -> Result<Rgb> {
    if bytes.starts_with(&[0xff, 0xd8]) {
        jpeg(bytes).context("the JPEG cannot be decoded")
    } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        // Pillow reads I;16 to RGB by clipping, not by shifting.
        PngDecoder::with_limits(Cursor::new(bytes), Limits::no_limits())
            .map_err(Into::into)
            .and_then(|png| pixels(png, is_grey_png(bytes), |v| v.min(255) as u8))
            .context("the PNG cannot be decoded")
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        WebPDecoder::new(Cursor::new(bytes))
            .map_err(Into::into)
            .and_then(|webp| pixels(webp, false, |v| v.min(255) as u8))
            .context("the WebP cannot be decoded")
    } else if bytes.is_empty() {
        bail!("there are no bytes to decode")
    } else {
        bail!("it is neither JPEG, PNG nor WebP (it begins with {:02x?})", &bytes[..bytes.len().min(4)])
    }
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

/// Whether the header says that a PNG is grey and has no alpha channel. Given a transparent level (tRNS), the decoder adds an
/// alpha channel, but Pillow does not.
fn is_grey_png(bytes: &[u8]) -> bool {
    const COLOUR_TYPE: usize = 25; // after the signature, the chunk's length and name, width, height and depth
    bytes.get(COLOUR_TYPE) == Some(&0)
}

/// The pixels of any decoder of the `image` crate. `grey16` turns 16-bit grey into 8 bits, also the grey of a file that
/// `is_grey` and got an alpha channel. 16-bit colour and grey with alpha keep their high bytes, as in Pillow's raw modes
/// `RGB;16B` and `LA;16B`.
fn pixels(decoder: impl ImageDecoder, is_grey: bool, grey16: fn(u16) -> u8) -> Result<Rgb> {
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_size(width, height)?;
    let color = decoder.color_type();
    let mut raw = vec![0; usize::try_from(decoder.total_bytes())?];
    catch_unwind(AssertUnwindSafe(|| decoder.read_image(&mut raw))).map_err(|_| anyhow!("its decoder gave up"))??;
    let high = |pair: &[u8]| (u16::from_ne_bytes([pair[0], pair[1]]) >> 8) as u8;
    let data = match color {
        ColorType::Rgb8 => raw,
        ColorType::L8 => to_rgb(raw.chunks_exact(1), |p| [p[0]; 3]),
        ColorType::La8 => to_rgb(raw.chunks_exact(2), |p| [p[0]; 3]),
        ColorType::Rgba8 => to_rgb(raw.chunks_exact(4), |p| [p[0], p[1], p[2]]),
        ColorType::L16 => to_rgb(raw.chunks_exact(2), |p| [grey16(u16::from_ne_bytes([p[0], p[1]])); 3]),
        ColorType::La16 if is_grey => to_rgb(raw.chunks_exact(4), |p| [grey16(u16::from_ne_bytes([p[0], p[1]])); 3]),
        ColorType::La16 => to_rgb(raw.chunks_exact(4), |p| [high(p); 3]),
        ColorType::Rgb16 => to_rgb(raw.chunks_exact(6), |p| [high(p), high(&p[2..]), high(&p[4..])]),
        ColorType::Rgba16 => to_rgb(raw.chunks_exact(8), |p| [high(p), high(&p[2..]), high(&p[4..])]),
        other => bail!("its pixels are {other:?}, which is not supported"),
    };
    Ok(Rgb { width, height, data })
}

fn to_rgb<'a>(pixels: impl Iterator<Item = &'a [u8]>, rgb: impl Fn(&[u8]) -> [u8; 3]) -> Vec<u8> {
    pixels.flat_map(rgb).collect()
}

/// Decodes with libjpeg-turbo's arithmetic (islow DCT, fancy upsampling), which Pillow uses.
fn jpeg(bytes: &[u8]) -> Result<Rgb> {
    let ended = Cell::new(false);
    // libjpeg reports an error by unwinding with its message. The panic hook is not called, so nothing is printed.
    let decoded = catch_unwind(AssertUnwindSafe(|| jpeg_unwinding(Reader { rest: bytes, ended: &ended })));
    let image = decoded.map_err(|cause| match cause.downcast::<String>() {
        Ok(message) => anyhow!("{}", message.trim_start_matches("libjpeg fatal error: ")),
        Err(_) => anyhow!("libjpeg gave up"),
    })??;
    // libjpeg fills missing parts with grey; Pillow refuses such a file.
    ensure!(!ended.get(), "it is truncated");
    Ok(image)
}

/// [`jpeg`], which may unwind.
fn jpeg_unwinding(reader: Reader<'_>) -> Result<Rgb> {
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
    let data = match channels {
        3 => {
            let mut data = vec![0; width * height * 3];
            started.read_scanlines_into(&mut data)?;
            data
        }
        1 => by_row(&mut started, width, height, 1, |p| [p[0]; 3])?,
        _ => by_row(&mut started, width, height, 4, cmyk)?,
    };
    started.finish()?;
    Ok(Rgb { width, height, data })
}

/// Decodes row by row into RGB.
fn by_row(
    started: &mut DecompressStarted<Reader<'_>>,
    width: usize,
    height: usize,
    channels: usize,
    rgb: impl Fn(&[u8]) -> [u8; 3],
) -> Result<Vec<u8>> {
    let mut row = vec![0u8; width * channels];
    let mut data = Vec::with_capacity(width * height * 3);
    for _ in 0..height {
        started.read_scanlines_into(&mut row)?;
        data.extend(row.chunks_exact(channels).flat_map(&rgb));
    }
    Ok(data)
}

/// Adobe's inverted CMYK, then Pillow's `cmyk2rgb` (Convert.c): no colour management.
fn cmyk(p: &[u8]) -> [u8; 3] {
    let white = u32::from(p[3]); // 255 - K, and K is stored inverted
    [0, 1, 2].map(|c| {
        let product = u32::from(255 - p[c]) * white + 128;
        (white - (((product >> 8) + product) >> 8)) as u8
    })
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
