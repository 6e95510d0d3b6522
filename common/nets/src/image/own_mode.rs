//! Pillow's resize in the mode of the file, before it becomes RGB: nearest neighbour for palettes, colours multiplied by opacity,
//! CMYK channel by channel, grey of 16 bits. torchvision resizes so when a peer turns the image to RGB last.

use super::Rgb;
use super::decode::{Beyond, Stored, cmyk_to_rgb, muldiv255};
use super::resize::{Filter, Window, resize_deep, resize_window};

/// The part `window` of the image resized to `width` x `height` by Pillow's bicubic filter in the file's own mode, as RGB.
pub(super) fn resize_own_mode(image: &Stored, width: usize, height: usize, window: Window) -> Rgb {
    let bicubic = |image: &Rgb| resize_window(image, width, height, Filter::Bicubic, window);
    if (image.rgb.width, image.rgb.height) == (width, height) {
        return bicubic(&image.rgb); // Pillow copies it: nothing is multiplied by its opacity.
    }
    match &image.beyond {
        Beyond::Nothing => bicubic(&image.rgb),
        Beyond::Palette => nearest(&image.rgb, width, height, window),
        Beyond::Alpha(alpha) => {
            let data = image.rgb.data.iter().zip(thrice(alpha)).map(|(&v, a)| muldiv255(v, a)).collect();
            let (colour, alpha) = (bicubic(&Rgb { data, ..image.rgb }), bicubic(&plane(&image.rgb, thrice(alpha))));
            let data = colour.data.iter().zip(&alpha.data).map(|(&v, &a)| divided_by_alpha(v, a)).collect();
            Rgb { data, ..colour }
        }
        Beyond::Cmyk(cmyk) => {
            let colour = bicubic(&plane(&image.rgb, cmyk.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]])));
            let black = bicubic(&plane(&image.rgb, cmyk.chunks_exact(4).flat_map(|p| [p[3]; 3])));
            let pixels = colour.data.chunks_exact(3).zip(black.data.chunks_exact(3));
            let data = pixels.flat_map(|(c, k)| cmyk_to_rgb(&[c[0], c[1], c[2], k[0]])).collect();
            Rgb { data, ..colour }
        }
        Beyond::Grey16(grey) => {
            let grey = resize_deep(grey, image.rgb.width, image.rgb.height, width, height, window);
            let data = grey.into_iter().flat_map(|v| [v.min(255) as u8; 3]).collect();
            Rgb { width: window.width, height: window.height, data }
        }
    }
}

fn thrice(plane: &[u8]) -> impl Iterator<Item = u8> {
    plane.iter().flat_map(|&v| [v; 3])
}

/// An image of the size of `like`.
fn plane(like: &Rgb, data: impl Iterator<Item = u8>) -> Rgb {
    Rgb { data: data.collect(), ..*like }
}

/// Pillow's `rgbA2rgba` (Convert.c).
fn divided_by_alpha(v: u8, alpha: u8) -> u8 {
    match alpha {
        0 | 255 => v,
        alpha => (255 * u32::from(v) / u32::from(alpha)).min(255) as u8,
    }
}

/// `ImagingScaleAffine` with the nearest pixel (Geometry.c).
fn nearest(image: &Rgb, width: usize, height: usize, window: Window) -> Rgb {
    // Pillow adds the step again and again, so that rounding errors add up in the same way.
    let sources = |from: usize, to: usize| -> Vec<usize> {
        let step = from as f64 / to as f64;
        let positions = std::iter::successors(Some(step * 0.5), |at| Some(at + step));
        positions.take(to).map(|at| (at as usize).min(from - 1)).collect()
    };
    let (columns, rows) = (sources(image.width, width), sources(image.height, height));
    let mut data = Vec::with_capacity(window.width * window.height * 3);
    for &y in &rows[window.top..window.top + window.height] {
        for &x in &columns[window.left..window.left + window.width] {
            data.extend_from_slice(&image.data[(y * image.width + x) * 3..][..3]);
        }
    }
    Rgb { width: window.width, height: window.height, data }
}
