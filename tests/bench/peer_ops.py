#!/usr/bin/env python3
"""Times the operations of a Stable Diffusion 1.5 training step at 256 px, one pair, beside PyTorch: forward and backward.

    cargo build --release --workspace --examples
    python tests/bench/peer_ops.py --threads 2 --repetitions 5
"""
import argparse, statistics, subprocess, time
from pathlib import Path

p = argparse.ArgumentParser()
p.add_argument("--threads", type=int, default=2)
p.add_argument("--repetitions", type=int, default=5)
p.add_argument("--bin", type=Path, default=Path(__file__).resolve().parents[2] / "target/release/examples/ops")
p.add_argument("--only", default="")
args = p.parse_args()

import torch
import torch.nn.functional as F

torch.set_num_threads(args.threads)
OPS = """conv 2 320 320 32
conv 2 640 320 32
conv 2 640 640 16
conv 2 1280 640 16
conv 2 1280 1280 8
conv 2 2560 1280 8
conv 2 1280 1280 4
conv 2 2560 1280 4
linear 2 1024 320 320
linear 2 1024 320 2560
linear 2 1024 1280 320
linear 2 256 640 5120
linear 2 256 2560 640
linear 2 64 1280 10240
linear 2 64 5120 1280
attention 2 1024 1024 8 40
attention 2 1024 77 8 40
attention 2 256 256 8 80
attention 2 64 64 8 160
group_norm 2 320 32
layer_norm 2 1024 320
geglu 2 1024 1280
adamw 50"""
ops = [op for op in OPS.splitlines() if op.startswith(args.only)]


def rand(*shape):
    return (torch.rand(*shape) - 0.5).requires_grad_()


def split(x, heads):
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def torch_times(op):
    name, *n = op.split()
    n = [int(x) for x in n]
    if name == "adamw":
        q = rand(n[0] * 1_000_000)
        q.grad = torch.rand_like(q)
        optimizer, times = torch.optim.AdamW([q], 1e-8), []
        for _ in range(args.repetitions + 1):
            began = time.time()
            optimizer.step()
            times.append((time.time() - began) * 1e3)
        return statistics.median(times[1:]), 0.0
    if name == "conv":
        b, c, o, side = n
        v = [rand(b, c, side, side), rand(o, c, 3, 3), rand(o)]
        f = lambda: F.conv2d(*v, padding=1)
    elif name == "linear":
        b, rows, inner, out = n
        v = [rand(b, rows, inner), rand(out, inner), rand(out)]
        f = lambda: F.linear(*v)
    elif name == "attention":
        b, rows, keys, heads, d = n
        v = [rand(b, rows, heads * d), rand(b, keys, heads * d), rand(b, keys, heads * d)]
        f = lambda: F.scaled_dot_product_attention(*(split(x, heads) for x in v)).transpose(1, 2).flatten(2)
    elif name == "group_norm":
        b, c, side = n
        v = [rand(b, c, side, side), rand(c), rand(c)]
        f = lambda: F.silu(F.group_norm(v[0], 32, v[1], v[2]))
    elif name == "layer_norm":
        b, rows, c = n
        v = [rand(b, rows, c), rand(c), rand(c)]
        f = lambda: F.layer_norm(v[0], (c,), v[1], v[2])
    elif name == "geglu":
        b, rows, width = n
        v = [rand(b, rows, 2 * width)]
        f = lambda: (lambda h, g: h * F.gelu(g))(*v[0].chunk(2, -1))
    forward, backward = [], []
    seed = torch.rand_like(f())
    for _ in range(args.repetitions + 1):
        began = time.time()
        y = f()
        forward.append((time.time() - began) * 1e3)
        began = time.time()
        y.backward(seed)
        backward.append((time.time() - began) * 1e3)
    return statistics.median(forward[1:]), statistics.median(backward[1:])


print(f"{'operation':30} {'forward, ms':>12} {'torch':>8} {'ratio':>6} {'backward, ms':>13} {'torch':>8} {'ratio':>6}")
for op in ops:
    line = subprocess.run([args.bin, str(args.threads), str(args.repetitions), op], check=True, stdout=subprocess.PIPE, text=True).stdout
    ours = [float(x) for x in line.strip().split("\t")[1:]]
    theirs = torch_times(op)
    ratio = [f"{a / b:6.2f}" if b else "" for a, b in zip(ours, theirs)]
    print(f"{op:30} {ours[0]:12.2f} {theirs[0]:8.2f} {ratio[0]:>6} {ours[1]:13.2f} {theirs[1]:8.2f} {ratio[1]:>6}", flush=True)
