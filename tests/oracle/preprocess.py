"""Makes tests/fixtures/preprocess: small images of every kind, and what the peers turn them into.

    python tests/oracle/preprocess.py tests/fixtures/preprocess [SEED [SCALE]]

Made with Python 3.11.7, Pillow 13.0.0, torch 2.15.0, torchvision 0.29.2, numpy, safetensors. The transforms are spelled
out with the peers' own resize calls: CLIPImageProcessor of transformers 4.30 (PIL bicubic, floor crop), ResizeMaxSize
of HPSv2's and Diffusion-DPO's open_clip, and train_transforms of Diffusion-DPO.

expected.safetensors holds `<image>/<key>`; its metadata `rows` is JSON: for each image the size and SHA-256 of the decoded
bytes and of a 224-pixel hf crop, or null where Pillow refuses the file.
"""

import hashlib
import io
import json
import pathlib
import struct
import sys
import zlib

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from safetensors.numpy import save_file
from torchvision import transforms
from torchvision.transforms import InterpolationMode

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HF, HPS, TRAIN = 25, 26, 27  # odd and even sides, so that halves are rounded both ways
# Images whose letterbox is kept: every shape, one decoder.
GEOMETRIES = ("420.jpg", "422.jpg", "tall.png", "wide.png", "longest_is_26.png", "tiny.png", "line.png")


def picture(rng, width, height):
    """Smooth colours with hard edges and some grain."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.zeros((height, width, 3))
    for c in range(3):
        fx, fy, p = rng.uniform(0.02, 0.4, 3)
        out[..., c] = 127 + 90 * np.sin(fx * x + p * 9) * np.cos(fy * y) + rng.normal(0, 6, (height, width))
    x0, y0 = rng.integers(0, max(width // 2, 1)), rng.integers(0, max(height // 2, 1))
    out[y0 : y0 + height // 3, x0 : x0 + width // 3] = rng.choice([0, 255], 3)
    return np.clip(out, 0, 255).astype(np.uint8)


def png16(pixels, transparent=None):
    """A 16-bit PNG of any colour type, which Pillow cannot write: (H, W, channels) u16, one level of grey transparent."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    trns = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + trns + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_images(rng, scale):
    def rgb(width, height):
        return Image.fromarray(picture(rng, width * scale, height * scale))

    def file(image, kind, **options):
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    def with_alpha(image):
        ramp = np.linspace(0, 255, image.width * image.height).reshape(image.height, image.width).astype(np.uint8)
        image = image.copy()
        image.putalpha(Image.fromarray(ramp))
        return image

    exif = Image.Exif()
    exif[0x0112] = 6
    plain = file(rgb(47, 39), "JPEG", quality=88)
    yield "420.jpg", file(rgb(83, 37), "JPEG", quality=90)
    yield "422.jpg", file(rgb(45, 61), "JPEG", quality=75, subsampling=1)
    yield "444_progressive.jpg", file(rgb(51, 53), "JPEG", quality=60, subsampling=0, progressive=True)
    yield "grey.jpg", file(rgb(37, 41).convert("L"), "JPEG", quality=80)
    yield "cmyk.jpg", file(rgb(43, 38).convert("CMYK"), "JPEG", quality=85)
    yield "exif_rot6.jpg", file(rgb(56, 31), "JPEG", quality=85, exif=exif)
    yield "restart_trailer.jpg", file(rgb(40, 35), "JPEG", quality=85, restart_marker_blocks=2) + b"trailing bytes"
    yield "truncated.jpg", plain[:-200]
    yield "no_end_mark.jpg", plain[:-2]
    yield "tall.png", file(rgb(20, 71), "PNG")
    yield "wide.png", file(rgb(70, 23), "PNG")
    yield "longest_is_26.png", file(rgb(26, 17) if scale == 1 else rgb(26, 17).resize((26, 17)), "PNG")
    yield "shortest_is_25.png", file(rgb(31, 25) if scale == 1 else rgb(31, 25).resize((31, 25)), "PNG")
    yield "tiny.png", file(Image.fromarray(picture(rng, 1, 1)), "PNG")
    yield "line.png", file(Image.fromarray(picture(rng, 3, 7)), "PNG")
    yield "grey.png", file(rgb(33, 40).convert("L"), "PNG")
    yield "grey_2bit.png", file(rgb(33, 40).convert("L").quantize(4), "PNG", bits=2)
    yield "bilevel.png", file(rgb(41, 29).convert("1"), "PNG")
    yield "la.png", file(with_alpha(rgb(30, 34).convert("L")), "PNG")
    yield "rgba.png", file(with_alpha(rgb(30, 35)), "PNG")
    yield "palette.png", file(rgb(36, 31).quantize(37), "PNG")
    yield "palette_trns.png", file(rgb(36, 32).quantize(16), "PNG", transparency=bytes(range(0, 160, 10)))
    yield "rgb_trns.png", file(rgb(29, 33), "PNG", transparency=(127, 130, 128))
    grain = rng.integers(0, 65536, (26, 31, 4)).astype(np.uint16)
    grain[:5] //= 200
    yield "grey16.png", png16(grain[..., :1] // 128)
    yield "grey16_trns.png", png16(grain[..., :1] // 128, transparent=int(grain[3, 4, 0] // 128))
    yield "la16.png", png16(grain[..., :2])
    yield "rgb16.png", png16(grain[..., :3])
    yield "rgba16.png", png16(grain)
    yield "lossy.webp", file(rgb(53, 38), "WEBP", quality=80)
    yield "lossy_alpha.webp", file(with_alpha(rgb(40, 33)), "WEBP", quality=70)
    yield "lossless.webp", file(rgb(32, 33), "WEBP", lossless=True)
    yield "lossless_alpha.webp", file(with_alpha(rgb(33, 30)), "WEBP", lossless=True, exact=True)


def hf_clip(image, size):
    width, height = image.size
    short, long = min(width, height), max(width, height)
    long = int(size * long / short)
    width, height = (size, long) if width <= height else (long, size)
    pixels = np.array(image.resize((width, height), Image.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


def hf_normalised(pixels):
    scaled = (pixels * 0.00392156862745098).astype(np.float32).transpose(2, 0, 1)
    mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (MEAN, STD))
    return (scaled - mean) / std


def letterbox(image, size, antialias):
    tensor = F.to_tensor(image)
    height, width = tensor.shape[1:]
    scale = size / float(max(height, width))
    if scale != 1.0:
        new = tuple(max(round(side * scale), 1) for side in (height, width))
        tensor = F.resize(tensor, new, InterpolationMode.BICUBIC, antialias=antialias)
    pad_h, pad_w = size - tensor.shape[1], size - tensor.shape[2]
    tensor = F.pad(tensor, [pad_w // 2, pad_h // 2, pad_w - pad_w // 2, pad_h - pad_h // 2], fill=0)
    return F.normalize(tensor, MEAN, STD).numpy()


def dpo_train(image, size):
    resize = transforms.Resize(size, interpolation=InterpolationMode.BILINEAR)
    return F.center_crop(resize(image), size)


def main(folder, seed=0, scale=1):
    torch.set_num_threads(1)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(int(seed))
    tensors, rows = {}, {}
    for name, data in make_images(rng, int(scale)):
        (folder / name).write_bytes(data)
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        except OSError:
            rows[name] = None
            continue
        rows[name] = {
            "width": image.width,
            "height": image.height,
            "rgb": hashlib.sha256(image.tobytes()).hexdigest(),
            "hf224": hashlib.sha256(hf_clip(image, 224).tobytes()).hexdigest(),
        }
        pixels = hf_clip(image, HF)
        train = dpo_train(image, TRAIN)
        tensors[f"{name}/hf_u8"] = pixels
        tensors[f"{name}/dpo_train_u8"] = np.array(train)
        if name in GEOMETRIES:
            tensors[f"{name}/hps"] = letterbox(image, HPS, True)
            tensors[f"{name}/hps_noaa"] = letterbox(image, HPS, False)
        if name in ("420.jpg", "tall.png"):
            tensors[f"{name}/hf"] = hf_normalised(pixels)
            tensors[f"{name}/dpo_train"] = F.normalize(F.to_tensor(train), [0.5], [0.5]).numpy()
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    save_file(tensors, folder / "expected.safetensors", metadata={"rows": json.dumps(rows, indent=1)})


if __name__ == "__main__":
    main(*sys.argv[1:])
