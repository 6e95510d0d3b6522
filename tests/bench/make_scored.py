#!/usr/bin/env python3
"""Writes the scored tables of two models with any number of prompts, to see what `winrate` needs for them.

    python tests/bench/make_scored.py 1000000 policy.parquet base.parquet --images 1
    /usr/bin/time -v target/release/winrate policy.parquet base.parquet --best-of 1 --threads 2
"""
import argparse

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

METRICS = ["hps", "clip", "pickscore", "aesthetic"]
TEXT = {"prompt_id": pa.string(), "prompt": pa.string(), "set": pa.string(), "model": pa.string()}
ROW_GROUP = 50_000

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("prompts", type=int)
parser.add_argument("outputs", nargs=2)
parser.add_argument("--images", type=int, default=5, help="images per prompt (default 5)")
args = parser.parse_args()

schema = pa.schema(list(TEXT.items()) + [("k", pa.uint32()), ("seed", pa.uint64())] + [(m, pa.float32()) for m in METRICS])
for number, output in enumerate(args.outputs):
    generator = np.random.default_rng(number)
    with pq.ParquetWriter(output, schema) as writer:
        for start in range(0, args.prompts, ROW_GROUP):
            prompts = np.repeat(np.arange(start, min(args.prompts, start + ROW_GROUP)), args.images)
            k = np.arange(len(prompts)) % args.images
            writer.write_table(pa.table({
                "prompt_id": [f"{p:016x}" for p in prompts],
                "prompt": [f"a photo of prompt {p}" for p in prompts],
                "set": ["set"] * len(prompts),
                "model": [output.removesuffix(".parquet")] * len(prompts),
                "k": pa.array(k, pa.uint32()),
                "seed": pa.array(prompts * args.images + k, pa.uint64()),
                **{m: generator.standard_normal(len(prompts)).astype(np.float32) for m in METRICS},
            }, schema=schema))
