#!/usr/bin/env python3
"""Times one DPO step of `train` beside PyTorch (diffusers), and measures both programs' peak memory.

    pip install torch diffusers transformers safetensors
    cargo build --release --workspace
    python tests/bench/peer_step.py --model sd15 --size 256 --threads 2      # needs 20 GB of memory and 5 GB of disk
    python tests/bench/peer_step.py --model mini --size 64 --pairs 16
    python tests/bench/peer_step.py --model sd35 --layers 4 --size 256     # adapters of Stable Diffusion 3.5 medium; pip install peft
    python tests/bench/peer_step.py --device cuda --dtype bf16 --pairs 4 --size 512     # a build with --features cuda,cudnn; pip install nvidia-ml-py

One step: noise, the frozen reference's and the policy's predictions for both images of every pair, the loss, the gradient of
all weights, clipping, AdamW; f32. `sd15` is the published UNet configuration with random weights. `sd35` is that of Stable Diffusion
3.5 medium, of which adapters of rank 64 are trained; the reference is the same network without them. Each side is a program of
its own that runs alone, ours and PyTorch's in turn; a step's seconds, of the clock and of the processors, are medians over
its steps but the first; memory is the peak of the resident set, or of what the GPU has in use. On a GPU, f32 is f32 on both
sides (no TF32), and bf16 means f32 weights and moments, a reference in bf16, and torch's autocast. `torch` keeps all activations, `torch+ckpt` recomputes them as ours does from 50 million weights.
On a GPU, torch is at its best: channels_last, scaled_dot_product_attention (diffusers' own choice), AdamW in one kernel, and algorithms
of cuDNN that were measured; `torch+plain` is without these. `torch+compile` goes through torch.compile, on either device. Parts of a
name can be joined: `torch+compile+ckpt`.
"""
import argparse, json, os, shutil, signal, statistics, subprocess, sys, tempfile, threading, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "pipelines/mini/base"
SD15 = dict(sample_size=64, block_out_channels=[320, 640, 1280, 1280], layers_per_block=2, cross_attention_dim=768,
            attention_head_dim=8, norm_num_groups=32)

SD35 = dict(sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
            caption_projection_dim=1536, pooled_projection_dim=2048, in_channels=16, out_channels=16, pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)), qk_norm="rms_norm")
RANK = 64

p = argparse.ArgumentParser()
p.add_argument("--model", choices=["sd15", "sd35", "mini"], default="sd15")
p.add_argument("--layers", type=int, default=24, help="blocks of sd35; a share of them has a second attention, as of all 24")
p.add_argument("--size", type=int, default=256, help="side of the images in pixels")
p.add_argument("--pairs", type=int, default=1)
p.add_argument("--steps", type=int, default=3, help="a side and round; the first is not counted")
p.add_argument("--rounds", type=int, default=1)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
p.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="what networks compute in; the CPU in f32")
p.add_argument("--sides", help="ours, and torch with any of +ckpt +plain +compile, by commas (ours,torch,torch+ckpt; on a GPU ours,torch,torch+compile,torch+ckpt)")
p.add_argument("--ours", nargs="*", default=[], help="further flags of train, without their dashes: moments=bf16")
p.add_argument("--bin", type=Path, default=ROOT / "target/release")
p.add_argument("--keep", type=Path, help="make the model in this folder, or use the one that lies there")
p.add_argument("--torch-side", help=argparse.SUPPRESS)
args = p.parse_args()
args.sides = args.sides or ("ours,torch,torch+ckpt" if args.device == "cpu" else "ours,torch,torch+compile,torch+ckpt")
for side in args.sides.split(","):
    first, *parts = side.split("+")
    if (first, parts) != ("ours", []) and not (first == "torch" and set(parts) <= {"ckpt", "plain", "compile"}):
        p.error(f"--sides: '{side}' is neither ours nor torch with any of +ckpt +plain +compile")


def make_sd35(base):
    import torch
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    shutil.copytree(ROOT / "tests/fixtures/flow/sd3/scheduler", base / "scheduler", dirs_exist_ok=True)
    shutil.copy(ROOT / "tests/fixtures/flow/sd3/model_index.json", base)
    torch.set_default_dtype(torch.bfloat16)  # as it is published
    layers = dict(num_layers=args.layers, dual_attention_layers=tuple(range(-(-13 * args.layers // 24))))
    SD3Transformer2DModel(**SD35 | layers).save_pretrained(base / "transformer")
    for i, width in enumerate([768, 1280]):  # without T5
        text = CLIPTextConfig(hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=width // 64, projection_dim=width)
        CLIPTextModelWithProjection(text).save_pretrained(base / ["text_encoder", "text_encoder_2"][i])
        (base / ["tokenizer", "tokenizer_2"][i]).mkdir(exist_ok=True)  # none: CLIP's own
    torch.set_default_dtype(torch.float32)
    (base / "vae").mkdir(exist_ok=True)
    (base / "vae/config.json").write_text(json.dumps(dict(block_out_channels=[128, 256, 512, 512], latent_channels=16)))


def make(folder):
    """A base folder with random weights in the published layout, and a replay file with the inputs of every step."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    base = folder / "base"
    factor, tokens, channels = {"mini": (4, 24, 4), "sd15": (8, 77, 4), "sd35": (8, 77 + 256, 16)}[args.model]
    if args.model == "sd35":
        if not (base / "transformer").exists():
            make_sd35(base)
    elif args.model == "mini":
        shutil.copytree(MINI, base, dirs_exist_ok=True)
    elif not (base / "unet").exists():
        torch.manual_seed(0)
        UNet2DConditionModel(**SD15).save_pretrained(base / "unet")
        text = CLIPTextConfig(hidden_size=768, intermediate_size=768, num_hidden_layers=1, num_attention_heads=12, vocab_size=49408)
        CLIPTextModel(text).save_pretrained(base / "text_encoder")
        shutil.copytree(ROOT / "tests/fixtures/oracle/base/scheduler", base / "scheduler", dirs_exist_ok=True)
        (base / "tokenizer").mkdir(exist_ok=True)  # none: CLIP's own
        (base / "vae").mkdir(exist_ok=True)
        (base / "vae/config.json").write_text(json.dumps(dict(block_out_channels=[128, 256, 512, 512], latent_channels=4)))
    torch.manual_seed(1)
    side, tensors = args.size // factor, {}
    for i in range(args.steps + 1):  # the last, with which a run of ours ends, is not timed
        tensors[f"{i}.latents"] = torch.randn(2 * args.pairs, channels, side, side)
        tensors[f"{i}.noise"] = torch.randn(args.pairs, channels, side, side).repeat(2, 1, 1, 1)
        tensors[f"{i}.timesteps"] = torch.randint(1, 1000, (args.pairs,)).repeat(2)
    captions = ["a red bicycle in front of a house"] * args.pairs
    save_file(tensors, folder / "replay.safetensors", {"prompts": json.dumps(captions)})
    (folder / "tokens").write_text(str(tokens))


def torch_adapters(folder, parts):
    """The same of a transformer's adapters, on the CPU in f32; the reference is the network without them."""
    import torch, torch.nn.functional as F
    from diffusers import SD3Transformer2DModel
    from peft import LoraConfig
    from safetensors.torch import load_file

    torch.set_num_threads(args.threads)
    policy = SD3Transformer2DModel.from_pretrained(folder / "base/transformer", torch_dtype=torch.float32).requires_grad_(False).train()
    policy.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    if "ckpt" in parts:
        policy.enable_gradient_checkpointing()
    if "compile" in parts:
        policy = torch.compile(policy)
    params = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, 1e-8, weight_decay=1e-2)
    inputs, beta, n = load_file(folder / "replay.safetensors"), 5000.0, args.pairs
    states, pooled = torch.randn(2 * n, int((folder / "tokens").read_text()), 4096), torch.randn(2 * n, 2048)
    for i in range(args.steps):
        began, cpu = time.time(), time.process_time()
        latents, noise, t = (inputs[f"{i}.{name}"] for name in ("latents", "noise", "timesteps"))
        s = (t / 1000)[:, None, None, None]
        x, target = (1 - s) * latents + s * noise, noise - latents
        error = lambda: (policy(x, states, pooled, t).sample - target).pow(2).mean((1, 2, 3))
        policy.disable_adapters()
        with torch.no_grad():
            r = error()
        policy.enable_adapters()
        e = error()
        loss = -F.logsigmoid(-0.5 * beta * ((e[:n] - e[n:]) - (r[:n] - r[n:]))).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        print(json.dumps([time.time() - began, time.process_time() - cpu]), flush=True)


def torch_side(folder, parts):
    import copy, torch, torch.nn.functional as F
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False
    half, best = args.dtype == "bf16", args.device == "cuda" and "plain" not in parts
    torch.backends.cudnn.benchmark = best
    open_unet = lambda dtype: UNet2DConditionModel.from_pretrained(folder / "base/unet", torch_dtype=dtype).to(args.device)
    policy = open_unet(torch.float32).train()
    reference = open_unet(torch.bfloat16 if half else torch.float32).requires_grad_(False)
    if best:
        policy, reference = (net.to(memory_format=torch.channels_last) for net in (policy, reference))
    if "ckpt" in parts:
        policy.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-8, weight_decay=1e-2, fused=best)
    if "compile" in parts:
        policy, reference = torch.compile(policy), torch.compile(reference)
    inputs, beta = load_file(folder / "replay.safetensors", device=args.device), 5000.0
    context = torch.randn(2 * args.pairs, int((folder / "tokens").read_text()), policy.config.cross_attention_dim, device=args.device)
    narrow = lambda *tensors: [t.bfloat16() if half and t.is_floating_point() else t for t in tensors]
    for i in range(args.steps):
        began, cpu = time.time(), time.process_time()
        x, noise, t = (inputs[f"{i}.{name}"] for name in ("latents", "noise", "timesteps"))
        with torch.no_grad():
            r = (reference(*narrow(x, t, context)).sample.float() - noise).pow(2).mean((1, 2, 3))
        with torch.autocast(args.device, torch.bfloat16, enabled=half):
            predicted = policy(x, t, context).sample
        e = (predicted.float() - noise).pow(2).mean((1, 2, 3))
        n = args.pairs
        loss = -F.logsigmoid(-0.5 * beta * ((e[:n] - e[n:]) - (r[:n] - r[n:]))).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if args.device == "cuda":
            torch.cuda.synchronize()
        print(json.dumps([time.time() - began, time.process_time() - cpu]), flush=True)


class Gpu(threading.Thread):
    """Watches how much memory of the first GPU is in use, by anybody."""
    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.ended = 0, False
        self.start()

    def run(self):
        import pynvml
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        while not self.ended:
            self.peak = max(self.peak, pynvml.nvmlDeviceGetMemoryInfo(handle).used)
            time.sleep(0.02)


def run(command, done):
    """Runs a program until `done` says so, and gives its peak memory in GiB."""
    gpu = Gpu() if args.device == "cuda" else None
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "passive"})
    said = done(process)
    os.kill(process.pid, signal.SIGKILL)
    _, _, usage = os.wait4(process.pid, 0)
    if gpu:
        gpu.ended = True
        gpu.join()
        return said, gpu.peak / 2**30
    return said, usage.ru_maxrss / 2**20


def ours(folder):
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)

    def steps(process):
        # Killed when the last step is logged: writing the checkpoint is no part of a step.
        log = out / "log.jsonl"
        cpu = []  # when each step's line appeared
        while process.poll() is None and len(cpu) <= args.steps:
            if log.parent.exists() and (log.read_text().count("\n") if log.exists() else 0) >= len(cpu):
                cpu.append(sum(int(ticks) for ticks in Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]) / os.sysconf("SC_CLK_TCK"))
            time.sleep(0.02)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return [[args.pairs / line["pairs_per_second"], b - a] for line, a, b in zip(lines, cpu, cpu[1:])]

    flags = [f"--{flag}" for flag in args.ours]
    flags += ["--lora-rank", RANK] if args.model == "sd35" else []
    return run([args.bin / "train", "--replay", folder / "replay.safetensors", "--base", folder / "base", "-o", out, "--max_train_steps", args.steps + 1,
                "--drift_every", 0, "--lr_scheduler", "constant", "--threads", args.threads, "--device", args.device, "--dtype", args.dtype, "-q", *flags], steps)


def torchs(folder, side):
    command = [sys.executable, __file__, "--torch-side", side, "--keep", folder, "--model", args.model, "--steps", args.steps, "--pairs", args.pairs, "--threads", args.threads, "--device", args.device, "--dtype", args.dtype]
    return run(command, lambda process: [json.loads(line) for line in process.stdout])


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    if os.fork() == 0:
        make(folder)
        os._exit(0)
    if os.wait()[1] != 0:
        sys.exit("the model could not be made")
    seconds, memory = {}, {}
    for _ in range(args.rounds):
        for side in args.sides.split(","):
            times, peak = ours(folder) if side == "ours" else torchs(folder, side)
            print(f"  {side}: {', '.join(f'{wall:.2f} ({cpu:.1f} cpu)' for wall, cpu in times)} s; peak {peak:.2f} GiB", flush=True)
            seconds.setdefault(side, []).extend(times[1:] or times)
            memory[side] = max(peak, memory.get(side, 0))
    median = lambda side, of: statistics.median(t[of] for t in seconds[side])
    for side in seconds:
        print(f"{args.model} at {args.size} px, {args.pairs} pair(s), {args.dtype} on {args.device}, {side}: {median(side, 0):.2f} s a step ({median(side, 1):.1f} of cpu), peak {memory[side]:.2f} GiB")
    for peer in (s for s in seconds if s != "ours" and "ours" in seconds):
        wall, cpu = (median("ours", of) / median(peer, of) for of in (0, 1))
        print(f"ours / {peer}: time {wall:.2f}, cpu {cpu:.2f}, memory {memory['ours'] / memory[peer]:.2f}")


if args.torch_side:
    side = torch_adapters if args.model == "sd35" else torch_side
    side(args.keep, args.torch_side.split("+")[1:])
elif args.keep:
    main(args.keep)
else:
    with tempfile.TemporaryDirectory() as tmp:
        main(Path(tmp))
