//! Against Pillow, torchvision, transformers and open_clip; the numbers are made by tests/oracle/preprocess.py.

use std::path::{Path, PathBuf};

use safetensors::{SafeTensors, tensor::TensorView};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::*;

fn from_here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// (3, H, W) bytes of (H, W, 3).
fn planar(image: &Rgb) -> Vec<u8> {
    (0..3).flat_map(|c| image.data.iter().skip(c).step_by(3).copied()).collect()
}

fn worst(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[derive(Deserialize)]
struct Row {
    width: usize,
    height: usize,
    rgb: String,
    hf224: String,
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn equals_the_peers_on_every_kind_of_file() {
    let folder = from_here("../../tests/fixtures/preprocess");
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let rows = header.metadata().as_ref().unwrap()["rows"].clone();
    let rows: std::collections::BTreeMap<String, Option<Row>> = serde_json::from_str(&rows).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert!(rows.len() > 25);
    for (name, row) in rows {
        let image = decode(&std::fs::read(folder.join(&name)).unwrap());
        let Some(row) = row else {
            println!("{name}: {:#}", image.unwrap_err());
            continue;
        };
        let image = image.unwrap();
        assert_eq!((image.width, image.height), (row.width, row.height), "{name}");
        assert_eq!(hex(&image.data), row.rgb, "{name}: decoded pixels");
        assert_eq!(hex(&hf_clip_u8(&image, 224, 224).data), row.hf224, "{name}: hf 224");
        let get = |key: &str| tensors.tensor(&format!("{name}/{key}")).ok();
        let exact = |key: &str, ours: &dyn Fn(usize) -> Rgb| {
            let view = get(key).unwrap();
            assert!(ours(view.shape()[0]).data == view.data(), "{name}: {key}");
        };
        exact("hf_u8", &|side| hf_clip_u8(&image, side, side));
        exact("dpo_train_u8", &|side| dpo_train_u8(&image, side).0);
        let close = |key: &str, ours: &dyn Fn(usize) -> Vec<f32>| {
            if let Some(view) = get(key) {
                let gap = worst(&ours(view.shape()[1]), &floats(&view));
                assert!(gap < 1e-5, "{name}: {key} {gap}");
            }
        };
        close("hf", &|side| hf_clip(&image, side, side, &CLIP));
        close("dpo_train", &|side| dpo_train(&image, side).0);
        close("hps", &|side| letterbox(&image, side, &CLIP, Antialias::On));
        close("hps_noaa", &|side| letterbox(&image, side, &CLIP, Antialias::Legacy));
    }
}

#[test]
fn bad_bytes_are_an_error_and_never_a_panic() {
    let folder = from_here("../../tests/fixtures/preprocess");
    for name in ["420.jpg", "444_progressive.jpg", "cmyk.jpg", "rgba.png", "palette.png", "lossy.webp", "lossless.webp"]
    {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        for cut in [0, 1, 3, 11, 20, 40, 64, bytes.len() / 2, bytes.len() - 40] {
            assert!(decode(&bytes[..cut]).is_err(), "{name} cut to {cut} bytes");
        }
        for at in (0..bytes.len()).step_by(13) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x5a;
            let _ = decode(&damaged); // an image or an error
        }
    }
    assert!(format!("{:#}", decode(b"GIF89a").unwrap_err()).contains("neither JPEG, PNG nor WebP"));
}

#[test]
fn a_bomb_is_refused_by_its_header() {
    // 65500 x 65500 pixels in a PNG header without data.
    let mut bomb = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\xff\xdc\0\0\xff\xdc\x08\x02\0\0\0".to_vec();
    bomb.extend(crc32(&bomb[12..29]).to_be_bytes());
    bomb.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82");
    assert!(format!("{:#}", decode(&bomb).unwrap_err()).contains("4290250000 pixels"));
    // The same in a JPEG: its frame header says height, then width.
    let mut jpeg = std::fs::read(from_here("../../tests/fixtures/preprocess/420.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
    assert!(format!("{:#}", decode(&jpeg).unwrap_err()).contains("4290250000 pixels"));
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0, 0, 0, 9]);
    assert!(decode(&jpeg).is_err());
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &b| (0..8).fold(crc ^ u32::from(b), step))
}

#[test]
fn crops_and_names() {
    // torchvision's CenterCrop rounds halves to even: 27 rows left over give 14, 25 give 12.
    let image = |width, height| Rgb { width, height, data: vec![200; width * height * 3] };
    assert_eq!(
        dpo_train_u8(&image(40, 67), 40).1,
        TrainCrop { original_width: 40, original_height: 67, left: 0, top: 14 }
    );
    assert_eq!(
        dpo_train_u8(&image(65, 40), 40).1,
        TrainCrop { original_width: 65, original_height: 40, left: 12, top: 0 }
    );
    // A crop larger than the resized image stands in zeros.
    let padded = hf_clip_u8(&image(10, 10), 5, 8);
    assert_eq!((padded.width, padded.data.iter().filter(|&&v| v == 200).count()), (8, 75));
    // A line of pixels keeps one row in the letterbox.
    assert_eq!(letterbox(&image(900, 1), 8, &CLIP, Antialias::On).len(), 192);
    assert_eq!(Preprocess::HfClip { size: 224, crop: 224, normalise: CLIP }.id(), "hf-clip-430/224");
    let antialias = Antialias::Legacy;
    assert_eq!(Preprocess::Letterbox { size: 224, normalise: CLIP, antialias }.id(), "letterbox-legacy/224");
    assert_eq!(decode(&png(&image(3, 2), None).unwrap()).unwrap(), image(3, 2));
}

/// Every image of `images` against the tensors of the same name in `expected`.
fn check(images: &Path, expected: &Path) {
    let mut files: Vec<_> = std::fs::read_dir(expected).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 5);
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let image = decode(&std::fs::read(images.join(name)).unwrap()).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let get = |key: &str| tensors.tensor(key).ok();
        let side = |view: &TensorView<'_>| *view.shape().last().unwrap();

        let decoded = get("decoded_rgb").unwrap();
        assert_eq!(decoded.shape(), [image.height, image.width, 3], "{name}");
        assert!(decoded.data() == image.data, "{name}: decoded pixels differ");
        let hf = get("hf430_u8").unwrap();
        assert!(planar(&hf_clip_u8(&image, side(&hf), side(&hf))) == hf.data(), "{name}: hf430_u8");
        let train = get("dpo_train_u8").unwrap();
        assert!(planar(&dpo_train_u8(&image, side(&train)).0) == train.data(), "{name}: dpo_train_u8");
        if let Some(view) = get("resize224_bicubic_u8") {
            assert!(hf_clip_u8(&image, 224, 224).data == view.data(), "{name}: resize224");
        }
        if let Some(view) = get("resize96_bilinear_u8") {
            assert!(
                resize(&image, view.shape()[1], view.shape()[0], Filter::Bilinear).data == view.data(),
                "{name}: 96"
            );
        }
        if let Some(view) = get("hf_pil") {
            assert!(worst(&hf_clip(&image, side(&view), side(&view), &CLIP), &floats(&view)) < 1e-6, "{name}: hf_pil");
        }
        if let Some(view) = get("dpo_train") {
            assert_eq!(dpo_train(&image, side(&view)).0, floats(&view), "{name}: dpo_train");
        }
        for (key, of_rgb, kind) in [
            ("hps_vendored", "hps_vendored_of_rgb", Antialias::On),
            ("hps_vendored_noaa", "hps_vendored_noaa_of_rgb", Antialias::Legacy),
        ] {
            if let Some(view) = get(of_rgb).or(get(key)).filter(|v| v.shape()[0] == 3) {
                let gap = worst(&letterbox(&image, side(&view), &CLIP, kind), &floats(&view));
                println!("{name} {key}: {gap:e}");
                assert!(gap < 2e-5, "{name}: {key} {gap}");
            }
        }
    }
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn equals_the_peers_on_the_parity_kit() {
    let kit = from_here("../../../shared/parity/given");
    check(&kit.join("images"), &kit.join("expected/preprocess"));
}

/// Numbers of Pillow 12's `Image.resize((5, 4), BICUBIC)` and `((12, 7), BICUBIC)` on an image of mode I;16.
#[test]
fn grey_of_16_bits_is_resized_as_by_pillow() {
    use super::resize::{Window, resize_deep};
    let plane: Vec<u16> = (0..63u32).map(|i| (i * 977 % 700) as u16).collect(); // 9 x 7
    let resized = |width, height, window| resize_deep(&plane, 9, 7, width, height, window);
    let whole = Window { left: 0, top: 0, width: 5, height: 4 };
    let small = [312, 393, 338, 485, 337, 302, 440, 309, 309, 423, 289, 289, 418, 243, 320, 368, 353, 490, 328, 374];
    assert_eq!(resized(5, 4, whole), small);
    let corner = Window { left: 0, top: 0, width: 12, height: 1 };
    assert_eq!(resized(12, 7, corner), [0, 154, 412, 530, 155, 273, 543, 661, 286, 456, 401, 94]);
    let middle = Window { left: 1, top: 2, width: 3, height: 1 };
    assert_eq!(resized(5, 4, middle), small[11..14]);
}

/// As Pillow: all rows are there, and zeros stand where the end mark was.
#[test]
fn a_jpeg_needs_its_rows_and_not_its_end_mark() {
    let bytes = std::fs::read(from_here("../../tests/fixtures/preprocess/420.jpg")).unwrap();
    let whole = decode(&bytes).unwrap();
    let rows = &bytes[..bytes.len() - 2];
    assert!(decode(&[rows, &[0; 512][..]].concat()).unwrap() == whole);
    assert!(decode(&[&bytes[..bytes.len() / 2], &[0; 4][..]].concat()).is_err());
}

/// As Pillow: the end mark, and the checksums before it, may be missing.
#[test]
fn a_png_needs_its_rows_and_not_its_end_mark() {
    let image = Rgb { width: 5, height: 40, data: (0..600u32).map(|i| (i * i % 251) as u8).collect() };
    let bytes = png(&image, None).unwrap();
    for cut in 1..=20 {
        let cut_off = &bytes[..bytes.len() - cut];
        assert!(decode(cut_off).is_ok_and(|read| read == image), "without the last {cut} bytes");
    }
    for left in [8, 20, 33, 40, bytes.len() - 60] {
        assert!(decode(&bytes[..left]).is_err(), "the first {left} bytes");
    }
}

#[test]
fn a_jpeg_of_many_scans_is_refused() {
    let bytes = std::fs::read(from_here("../../tests/fixtures/preprocess/444_progressive.jpg")).unwrap();
    let scan = bytes.windows(2).rposition(|w| w == [0xff, 0xda]).unwrap();
    let repeated =
        |n: usize| [&bytes[..bytes.len() - 2], &bytes[scan..bytes.len() - 2].repeat(n)[..], &[0xff, 0xd9]].concat();
    assert!(decode(&repeated(100)).is_ok());
    assert!(format!("{:#}", decode(&repeated(1000)).unwrap_err()).contains("scans"));
    // A small file of few scans more than encoders write may claim any size.
    let mut large = repeated(40);
    let frame = large.windows(2).position(|w| w == [0xff, 0xc2]).unwrap();
    large[frame + 5..frame + 9].copy_from_slice(&[0x33, 0, 0x33, 0]);
    assert!(format!("{:#}", decode(&large).unwrap_err()).contains("scans"));
}

/// A colour profile, which is not used, of 256 MB in some hundred kB.
#[test]
fn a_profile_that_unpacks_to_much_takes_no_memory() {
    let bytes = std::fs::read(from_here("../../tests/fixtures/preprocess/grey.png")).unwrap();
    let chunk = |kind: &[u8], data: &[u8]| {
        let named = [kind, data].concat();
        [&(data.len() as u32).to_be_bytes()[..], &named, &crc32(&named).to_be_bytes()].concat()
    };
    // Stored blocks of deflate would be as long as what they hold, so the profile is a PNG's own packed rows.
    let white = Rgb { width: 8192, height: 8192, data: vec![255; 3 * 8192 * 8192] };
    let packed = png(&white, None).unwrap();
    let start = packed.windows(4).position(|w| w == b"IDAT").unwrap();
    let length = u32::from_be_bytes(packed[start - 4..start].try_into().unwrap()) as usize;
    let bomb = chunk(b"iCCP", &[b"k\0\0", &packed[start + 4..start + 4 + length]].concat());
    let poisoned = [&bytes[..33], &bomb, &bytes[33..]].concat();
    if let Ok(image) = decode(&poisoned) {
        assert!(image == decode(&bytes).unwrap());
    }
}
