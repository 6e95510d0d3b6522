#!/usr/bin/env python3
"""Times `train` and `sample` beside PyTorch (diffusers) on the mini world, the two sides in turn, and prints the ratios.

    pip install torch diffusers transformers pyarrow safetensors
    cargo build --release --workspace
    python tests/bench/peer.py --threads 2 --rounds 3

PyTorch does the arithmetic only: a DPO step on random latents (reference forward, policy forward and backward, AdamW), and
the guided DDIM loop with the VAE's decoder. Ours are the whole programs less their start-up, from tables to files. Ratios
below 1 mean that ours is faster. Beside the seconds of the wall stand those of all threads on the processor, which tell more
where others use the machine too.
"""
import argparse, copy, os, resource, statistics, subprocess, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "pipelines/mini"

p = argparse.ArgumentParser()
p.add_argument("--threads", type=int, default=2)
p.add_argument("--rounds", type=int, default=3)
p.add_argument("--bin", type=Path, default=ROOT / "target/release")
args = p.parse_args()
os.environ["OMP_NUM_THREADS"] = str(args.threads)

import pyarrow as pa, pyarrow.parquet as pq, torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

torch.set_num_threads(args.threads)
PAIRS, STEPS, IMAGES, SAMPLING = 16, 6, 16, 20
unet = UNet2DConditionModel.from_pretrained(MINI / "base/unet", torch_dtype=torch.float32)
vae = AutoencoderKL.from_pretrained(MINI / "base/vae", torch_dtype=torch.float32).eval()
ddim = DDIMScheduler.from_pretrained(MINI / "base/scheduler")
ddim.set_timesteps(SAMPLING)


def clocks():
    """Seconds of the wall, and on the processor by this process and those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.time(), sum(u.ru_utime + u.ru_stime for u in used)


def seconds(body):
    began = clocks()
    body()
    return [end - start for start, end in zip(began, clocks())]


def torch_train(_):
    policy, ref = copy.deepcopy(unet), copy.deepcopy(unet).eval()
    opt = torch.optim.AdamW(policy.parameters(), 1e-5)

    def steps():
        for _ in range(STEPS):
            x, n = torch.randn(2 * PAIRS, 4, 16, 16), torch.randn(PAIRS, 4, 16, 16).repeat(2, 1, 1, 1)
            t, c = torch.randint(0, 1000, (PAIRS,)).repeat(2), torch.randn(2 * PAIRS, 24, 64)
            with torch.no_grad():
                r = (ref(x, t, c).sample - n).pow(2).mean((1, 2, 3))
            e = (policy(x, t, c).sample - n).pow(2).mean((1, 2, 3))
            z = -1000 * ((e[:PAIRS] - e[PAIRS:]) - (r[:PAIRS] - r[PAIRS:]))
            opt.zero_grad()
            (-F.logsigmoid(z).mean()).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            opt.step()
    return [s / STEPS for s in seconds(steps)]


@torch.no_grad()
def torch_sample(_):
    def images():
        x, c = torch.randn(IMAGES, 4, 16, 16), torch.randn(2 * IMAGES, 24, 64)
        for t in ddim.timesteps:
            u, v = unet(torch.cat([x, x]), t, c).sample.chunk(2)
            x = ddim.step(u + 4 * (v - u), t, x).prev_sample
        vae.decode(x / vae.config.scaling_factor)
    return [s / IMAGES for s in seconds(images)]


def run(*command):
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)


def without_start(body, n):
    """What one of n takes, from two runs of the program: of n and of 2n."""
    return [(two - one) / n for one, two in zip(seconds(lambda: body(n)), seconds(lambda: body(2 * n)))]


def our_train(tmp):
    def steps(n):
        out = Path(tmp) / "policy"
        run("rm", "-rf", out)
        run(args.bin / "train", Path(tmp) / "latents", "--labels", Path(tmp) / "labels.parquet", "--base", MINI / "base", "-o", out,
            "--resolution", 64, "--augment", "none", "--max_train_steps", n, "--train_batch_size", PAIRS, "--learning_rate", 1e-5,
            "--threads", args.threads, "-q")
    return without_start(steps, STEPS)


def our_sample(tmp):
    def images(n):
        run(args.bin / "sample", Path(tmp) / "prompts.txt", "--base", MINI / "base", "-n", n, "--steps", SAMPLING, "--guidance", 4,
            "--batch", IMAGES, "-o", Path(tmp) / f"{n}.parquet", "--threads", args.threads, "-q")
    return without_start(images, IMAGES)


with tempfile.TemporaryDirectory() as tmp:
    (Path(tmp) / "prompts.txt").write_text("red apple, flat style\n")
    run(args.bin / "encode", MINI / "pairs.parquet", "--base", MINI / "base", "--resolution", 64, "-o", Path(tmp) / "latents", "-q")
    ids = pq.read_table(Path(tmp) / "latents/pairs.parquet", columns=["pair_id"])["pair_id"]
    ones = pa.array([1.0] * len(ids), pa.float32())
    pq.write_table(pa.table({"pair_id": ids, "target": ones, "weight": ones}), Path(tmp) / "labels.parquet")
    cases = {"DPO step of 16 pairs": (our_train, torch_train), "image, 20 DDIM steps with guidance": (our_sample, torch_sample)}
    for name, (ours, theirs) in cases.items():
        rounds = [(ours(tmp), theirs(tmp)) for _ in range(args.rounds)]
        for clock, of in enumerate(["of the wall", "on the processor"]):
            a, b = [statistics.median(round[side][clock] for round in rounds) for side in (0, 1)]
            print(f"{name}: ours {a:.3f} s, torch {b:.3f} s {of}, ratio {a / b:.2f} ({args.threads} threads, medians of {args.rounds})")
