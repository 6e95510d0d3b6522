#!/usr/bin/env python3
"""Times whole programs beside what people use instead, the two sides in turn, and prints a line per case.

    pip install torch diffusers transformers safetensors pillow numpy pyarrow pandas scipy polars duckdb
    cargo build --release --workspace
    python tests/bench/peer_tools.py                        # all cases, some minutes on two quiet cores
    python tests/bench/peer_tools.py --cases vote,winrate --rounds 5

Cases:
  vote      a million pairs: the majority of four metrics, from Parquet to Parquet; beside DuckDB and polars
  winrate   two models, 200,000 prompts, five images: win rates with intervals and sign tests; beside pandas with SciPy
  encode    latents and text states of the mini world's images; beside diffusers and transformers
  safe      `prompts --safe` on 1,000 prompts, DistilBERT of the published size; beside transformers
  start     every program, `--version`; beside `import diffusers`

Each side is a process of its own. For `encode` and `safe` its time for a few rows is subtracted, which is loading. Figures are
medians: seconds of the wall, seconds of the processor, peak memory. A ratio below 1 means that ours takes less.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "pipelines/mini"
CASES = ["vote", "winrate", "encode", "safe", "start"]
METRICS = ["hps", "clip", "pickscore", "aesthetic"]

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("--cases", type=lambda s: s.split(","), default=CASES, help="of " + ", ".join(CASES))
p.add_argument("--threads", type=int, default=2)
p.add_argument("--rounds", type=int, default=3)
p.add_argument("--pairs", type=int, default=1_000_000)
p.add_argument("--prompts", type=int, default=200_000)
p.add_argument("--bin", type=Path, default=ROOT / "target/release")
p.add_argument("--side", nargs="+", help=argparse.SUPPRESS)  # this program as a peer


# --- tables ------------------------------------------------------------------------------------------------------------


def scores(path, n):
    """What `score` writes for n pairs, with a tie here and there."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    r = np.random.default_rng(0)
    names = lambda kind, of: pa.array([f"{kind}{x:032x}" for x in of])
    columns = {
        "pair_id": names("", range(n)),
        "caption": pa.array([f"a picture of thing {x % 50_000} in the style of artist {x % 97}" for x in range(n)]),
        "image_0_uid": names("a", range(n)),
        "image_1_uid": names("b", range(n)),
        "label_0": pa.array(r.integers(0, 2, n).astype("float32")),
    }
    for m in METRICS:
        for side in (0, 1):
            columns[f"{m}_{side}"] = pa.array((r.integers(0, 4096, n) / 4096).astype("float32"))
    pq.write_table(pa.table(columns), path, compression="zstd")


def scored(path, n, model):
    """What `score` writes for five images of each of n prompts."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    r, rows = np.random.default_rng(len(model)), 5 * n
    columns = {
        "prompt_id": pa.array([f"{x // 5:016x}" for x in range(rows)]),
        "prompt": pa.array([f"a picture of thing {x // 5}" for x in range(rows)]),
        "set": pa.array(["all"] * rows),
        "image_uid": pa.array([f"{model}{x:028x}" for x in range(rows)]),
        "k": pa.array((np.arange(rows) % 5).astype("uint32")),
        "model": pa.array([model] * rows),
    }
    for m in METRICS:
        columns[m] = pa.array(r.normal(size=rows).astype("float32"))
    pq.write_table(pa.table(columns), path, compression="zstd")


def first(path, n):
    """The mini world's first n pairs."""
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(MINI / "pairs.parquet").slice(0, n), path)


# --- the peers, each a process -----------------------------------------------------------------------------------------


def duckdb_vote(table, out):
    import duckdb

    duckdb.sql(f"SET threads = {args.threads}")
    votes = " + ".join(f"sign({m}_0 - {m}_1)" for m in METRICS)
    duckdb.sql(
        f"COPY (SELECT pair_id, caption, image_0_uid, image_1_uid, label_0, s AS votes, CASE WHEN s > 0 THEN 1.0 WHEN s < 0 THEN 0.0"
        f" ELSE 0.5 END::FLOAT AS target, (s <> 0)::FLOAT AS weight FROM (SELECT *, {votes} AS s FROM '{table}'))"
        f" TO '{out}' (FORMAT parquet, COMPRESSION zstd)"
    )


def polars_vote(table, out):
    import polars as pl

    votes = sum((pl.col(f"{m}_0") - pl.col(f"{m}_1")).sign() for m in METRICS)
    rows = pl.scan_parquet(table).with_columns(votes=votes)
    rows = rows.with_columns(
        target=pl.when(pl.col("votes") > 0).then(1.0).when(pl.col("votes") < 0).then(0.0).otherwise(0.5).cast(pl.Float32),
        weight=(pl.col("votes") != 0).cast(pl.Float32),
    )
    rows.select("pair_id", "caption", "image_0_uid", "image_1_uid", "label_0", "votes", "target", "weight").sink_parquet(out)


def pandas_winrate(a, b):
    import pandas as pd
    from scipy.stats import binomtest

    best = [pd.read_parquet(t, columns=["prompt_id", *METRICS]).groupby("prompt_id")[METRICS].max() for t in (a, b)]
    one, two = best[0].align(best[1], join="inner")
    for m in METRICS:
        wins, losses = int((one[m] > two[m]).sum()), int((one[m] < two[m]).sum())
        interval = binomtest(wins, len(one)).proportion_ci(method="wilson")
        print(m, wins / len(one), interval.low, interval.high, binomtest(wins, wins + losses).pvalue)


def torch_encode(table):
    import io

    import numpy as np
    import pyarrow.parquet as pq
    import torch
    from diffusers import AutoencoderKL
    from PIL import Image
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    vae = AutoencoderKL.from_pretrained(MINI / "base/vae").eval()
    text, tokenizer = CLIPTextModel.from_pretrained(MINI / "base/text_encoder"), CLIPTokenizer.from_pretrained(MINI / "base/tokenizer")
    rows = pq.read_table(table, columns=["caption", "jpg_0", "jpg_1"]).to_pydict()
    jpegs, captions = list(dict.fromkeys(rows["jpg_0"] + rows["jpg_1"])), list(dict.fromkeys(rows["caption"]))
    latents, states = [], []
    for i in range(0, len(jpegs), 32):
        pixels = [np.asarray(Image.open(io.BytesIO(j)).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)) for j in jpegs[i:i + 32]]
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents.append(vae.encode(x).latent_dist.parameters.half())
    for i in range(0, len(captions), 64):
        ids = tokenizer(captions[i:i + 64], padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt")
        states.append(text(ids.input_ids).last_hidden_state.half())
    print(len(torch.cat(latents)), len(torch.cat(states)))


def transformers_safe(folder, prompts):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    lines = Path(prompts).read_text().splitlines()
    lines.sort(key=len)  # so that a batch has texts of one length
    probabilities = []
    for i in range(0, len(lines), 32):
        probabilities.append(model(**tokenizer(lines[i:i + 32], padding=True, truncation=True, return_tensors="pt")).logits.softmax(-1))
    print(torch.cat(probabilities).shape)


PEERS = {f.__name__: f for f in [duckdb_vote, polars_vote, pandas_winrate, torch_encode, transformers_safe]}
# In processes of their own, so that this one stays small: what it takes would count as the memory of its children.
TABLES = {f.__name__: f for f in [scores, scored, first]}


def make(table, path, n, *rest):
    subprocess.run([str(c) for c in peer(table, path, n, *rest)], check=True)


# --- the comparison ----------------------------------------------------------------------------------------------------


def measured(command):
    """Seconds of the wall, seconds of the processor, peak memory in MiB."""
    environment = os.environ | {name: str(args.threads) for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")}
    began = time.monotonic()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, f"failed: {command}"
    return time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def peer(name, *rest):
    return [sys.executable, __file__, "--threads", args.threads, "--side", name, *rest]


def compare(case, sides):
    """`sides`: name to command, or to a command and the same for a few rows; ours first."""
    times = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, (command, few) in sides.items():
            wall, cpu, peak = measured(command)
            if few:
                less = measured(few)
                wall, cpu = wall - less[0], cpu - less[1]
            times[name].append((wall, cpu, peak))
    medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in times.items()}
    mine, *others = medians.items()
    for name, theirs in others:
        ratios = [a / b for a, b in zip(mine[1], theirs)]
        print(
            f"{case}: ours {mine[1][0]:.2f} s ({mine[1][1]:.2f} s of processor, {mine[1][2]:.0f} MiB), {name} {theirs[0]:.2f} s"
            f" ({theirs[1]:.2f} s, {theirs[2]:.0f} MiB); ratios {ratios[0]:.2f}, {ratios[1]:.2f}, {ratios[2]:.2f}"
            f" ({args.threads} threads, medians of {args.rounds})",
            flush=True,
        )


def run(case, tmp):
    threads = ["--threads", args.threads, "-q"]
    if case == "vote":
        make("scores", tmp / "scores.parquet", args.pairs)
        compare(case, {
            "ours": ([args.bin / "vote", tmp / "scores.parquet", "-o", tmp / "labels.parquet", *threads], None),
            "DuckDB": (peer("duckdb_vote", tmp / "scores.parquet", tmp / "duckdb.parquet"), None),
            "polars": (peer("polars_vote", tmp / "scores.parquet", tmp / "polars.parquet"), None),
        })
    elif case == "winrate":
        tables = [tmp / "policy.parquet", tmp / "base.parquet"]
        for table in tables:
            make("scored", table, args.prompts, table.stem)
        compare(case, {"ours": ([args.bin / "winrate", *tables, *threads], None), "pandas": (peer("pandas_winrate", *tables), None)})
    elif case == "encode":
        tables = {n: tmp / f"{n}.parquet" for n in (8, 1024)}
        for n, table in tables.items():
            make("first", table, n)
        ours = lambda n: ["sh", "-c", f'rm -rf "$2" && exec "$0" "$1" -o "$2" --base {MINI}/base --resolution 64 --threads {args.threads} -q',
                          args.bin / "encode", tables[n], tmp / f"latents-{n}"]
        compare(case, {"ours": (ours(1024), ours(8)), "torch": (peer("torch_encode", tables[1024]), peer("torch_encode", tables[8]))})
    elif case == "safe":
        subprocess.run([sys.executable, "-c", SAFE, str(tmp / "safe"), str(MINI / "scorers/imagereward/vocab.txt")], check=True)
        words = "red green small old castle dragon portrait of a woman in the snow at night oil on canvas".split()
        for n in (8, 1000):
            lines = [" ".join(words[(i * 7 + j * 3) % len(words)] for j in range(4 + i % 30)) + f" {i}" for i in range(n)]
            (tmp / f"{n}.txt").write_text("\n".join(lines) + "\n")
        ours = lambda n: [args.bin / "prompts", tmp / f"{n}.txt", "--safe", tmp / "safe", "--threshold", "1", "-o", tmp / "safe.parquet", *threads]
        theirs = lambda n: peer("transformers_safe", tmp / "safe", tmp / f"{n}.txt")
        compare(case, {"ours": (ours(1000), ours(8)), "transformers": (theirs(1000), theirs(8))})
    else:
        for tool in ["train", "sample", "score", "vote", "winrate"]:
            compare(f"start of {tool}", {"ours": ([args.bin / tool, "--version"], None),
                                         "import diffusers": ([sys.executable, "-c", "import diffusers, torch"], None)})


# DistilBERT of the published size with random weights.
SAFE = """
import sys, torch
from transformers import BertTokenizer, DistilBertConfig, DistilBertForSequenceClassification
torch.manual_seed(0)
folder, vocab = sys.argv[1:]
DistilBertForSequenceClassification(DistilBertConfig(id2label={0: "SFW", 1: "NSFW"}, label2id={"SFW": 0, "NSFW": 1})).save_pretrained(folder)
words = open(vocab).read().split("\\n")[:-1]
open(folder + "/vocab.txt", "w").write("\\n".join(words) + "\\n")
BertTokenizer(folder + "/vocab.txt").save_pretrained(folder)
"""

args = p.parse_args()
if args.side:
    name, *rest = args.side
    if name in PEERS:
        PEERS[name](*rest)
    else:
        TABLES[name](rest[0], int(rest[1]), *rest[2:])
else:
    for case in args.cases:
        with tempfile.TemporaryDirectory() as tmp:
            run(case, Path(tmp))
