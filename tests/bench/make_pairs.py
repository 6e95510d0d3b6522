#!/usr/bin/env python3
"""Writes a pairs table of any length, half of whose images repeat an earlier one, to see that memory does not grow with rows.

    python tests/bench/make_pairs.py 100000 pairs.parquet
    /usr/bin/time -v target/release/score pairs.parquet --models pipelines/mini/scorers -o scores.parquet --json

An image is a function of its number, so nothing is held but one row group.
"""
import argparse
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROW_GROUP = 1000

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("pairs", type=int)
parser.add_argument("output")
parser.add_argument("--side", type=int, default=64, help="pixels (default 64)")
parser.add_argument("--repeated", type=float, default=0.5, help="share of image places that repeat (default 0.5)")
parser.add_argument("--captions", type=int, default=5000, help="distinct captions (default 5000)")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()


def jpeg(number):
    """Coarse colour noise: compresses to a few KB, and every number gives other bytes."""
    coarse = np.random.default_rng([args.seed, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((args.side, args.side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


rng = np.random.default_rng(args.seed)
writer, distinct = None, 0
for start in range(0, args.pairs, ROW_GROUP):
    rows = range(start, min(start + ROW_GROUP, args.pairs))
    numbers = []
    for _ in range(2 * len(rows)):
        if distinct and rng.random() < args.repeated:
            numbers.append(int(rng.integers(distinct)))
        else:
            numbers.append(distinct)
            distinct += 1
    table = pa.table({
        "caption": [f"red apple number {rng.integers(args.captions)}, flat style" for _ in rows],
        "image_0_uid": [f"image-{n}" for n in numbers[::2]],
        "image_1_uid": [f"image-{n}" for n in numbers[1::2]],
        "jpg_0": pa.array([jpeg(n) for n in numbers[::2]], pa.binary()),
        "jpg_1": pa.array([jpeg(n) for n in numbers[1::2]], pa.binary()),
        "label_0": pa.array(rng.choice([0.0, 0.5, 1.0], len(rows)), pa.float32()),
    })
    writer = writer or pq.ParquetWriter(args.output, table.schema)
    writer.write_table(table)
writer.close()
print(f"{args.pairs} pairs, {distinct} distinct images")
