#!/usr/bin/env python3
"""Times `score` beside its Python peers on the same table, the two sides in turn, and prints a line a case.

    pip install numpy torch torchvision open_clip_torch transformers pillow pyarrow safetensors
    cargo build --release --workspace
    python tests/bench/peer_score.py                       # all cases; the real sizes take ten minutes on two cores
    python tests/bench/peer_score.py --cases mini --rounds 5

Cases: `mini`, the four metrics of the mini world; `clip-h`, ViT-H-14 in open_clip's layout beside open_clip; `clip-l`, the
aesthetic predictor on ViT-L/14 in transformers' layout beside transformers. The models of the real sizes have random weights,
made on demand.

Both sides go from JPEG bytes in Parquet to scores. The peer stays loaded between its runs; of ours the time that it takes
for a single pair is subtracted, which is loading and hashing the models. So a ratio is throughput over throughput: above 1 we
are faster. Memory is the peak of the whole process. The peers decode in threads, work in batches, each distinct image and
caption once, in the batch size of a few that suits them best; both sides must give the same scores.
"""
import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "pipelines/mini"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CASES = ["mini", "clip-h", "clip-l"]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--cases", type=lambda s: s.split(","), default=CASES, help="of " + ", ".join(CASES))
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--mini-pairs", type=int, default=512)
parser.add_argument("--real-pairs", type=int, default=8)
parser.add_argument("--bin", type=Path, default=ROOT / "target/release")
parser.add_argument("--folder", type=Path, help="keep models and tables here instead of in a temporary folder")
parser.add_argument("--peer", help=argparse.SUPPRESS)  # this program as a peer: JSON lines over its pipes
parser.add_argument("--make", help=argparse.SUPPRESS)


# --- models and tables -------------------------------------------------------------------------------------------------


def make(case, folder):
    """Random weights of the published sizes, f16 as they are published compressed."""
    import torch

    torch.manual_seed(0)
    if case == "clip-h":
        import open_clip
        from safetensors.torch import save_file

        model = open_clip.create_model("ViT-H-14", precision="fp16")
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
        return
    from transformers import CLIPConfig, CLIPModel

    text = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
    vision = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24, patch_size=14)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768))
    model.half().save_pretrained(folder)
    sizes, head = [768, 1024, 128, 64, 16, 1], {}
    for n, (inner, out) in zip([0, 2, 4, 6, 7], zip(sizes, sizes[1:])):
        head[f"layers.{n}.weight"], head[f"layers.{n}.bias"] = torch.randn(out, inner) / inner**0.5, torch.randn(out)
    torch.save(head, folder / "head.pth")


def prepare(case, folder):
    """The table, a table of its first pair, and the flags of `score`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "pairs.parquet"
    if case == "mini":
        pq.write_table(pq.read_table(MINI / "pairs.parquet").slice(0, args.mini_pairs), table)
        flags = ["--models", MINI / "scorers"]
    else:
        if not any(folder.glob("*.safetensors")):
            subprocess.run([sys.executable, __file__, "--make", case, "--folder", folder], check=True)
        generator = [sys.executable, ROOT / "tests/bench/make_pairs.py", args.real_pairs, table]
        subprocess.run([str(a) for a in generator + ["--side", 512, "--repeated", 0]], check=True, stdout=subprocess.DEVNULL)
        metric = {"clip-h": "clip", "clip-l": "aesthetic"}[case]
        flags = ["--metrics", metric, "--model", f"{metric}={folder}"]
    pq.write_table(pq.read_table(table).slice(0, 1), folder / "one.parquet")
    return table, folder / "one.parquet", [str(f) for f in flags]


# --- the peers ---------------------------------------------------------------------------------------------------------


def letterbox(image, side):
    """HPSv2's and Diffusion-DPO's transform: the float image's longer side becomes `side`, black around it."""
    import torch
    import torchvision.transforms.functional as F

    x = F.to_tensor(image)
    scale = side / max(x.shape[1:])
    height, width = (round(s * scale) for s in x.shape[1:])
    if scale != 1:
        x = F.resize(x, [height, width], F.InterpolationMode.BICUBIC, antialias=True)
    left, top = (side - width) // 2, (side - height) // 2
    x = torch.nn.functional.pad(x, [left, side - width - left, top, side - height - top])
    return F.normalize(x, MEAN, STD)


def processor(image, side):
    """transformers' CLIPImageProcessor with Pillow's resize, without its detours."""
    import torchvision.transforms.functional as F
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    image = image.resize((int(side * width / short), int(side * height / short)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return F.normalize(F.to_tensor(image.crop((left, top, left + side, top + side))), MEAN, STD)


def unit(x):
    x = getattr(x, "pooler_output", x)
    return x / x.norm(dim=-1, keepdim=True)


class Clip:
    """One metric: how it prepares an image, and what it makes of images and captions."""

    def __init__(self, name, folder, prepare, side):
        import torch
        from transformers import AutoTokenizer, CLIPModel

        self.name, self.prepare, self.side = name, prepare, side
        self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.head = None
        if name == "aesthetic":
            head = torch.load(folder / "head.pth", map_location="cpu")
            self.head = [(head[f"layers.{n}.weight"].float(), head[f"layers.{n}.bias"].float()) for n in (0, 2, 4, 6, 7)]
        else:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.context = self.model.config.text_config.max_position_embeddings

    def images(self, pixels):
        return unit(self.model.get_image_features(pixel_values=pixels))

    def captions(self, texts):
        if self.head:
            return None
        ids = self.tokenizer(texts, padding=True, truncation=True, max_length=self.context, return_tensors="pt")
        return unit(self.model.get_text_features(**ids))

    def scores(self, images, captions):
        if self.head is None:
            return (images * captions).sum(-1)
        for weight, bias in self.head:
            images = images @ weight.T + bias
        return images.squeeze(-1)


class OpenClip:
    name, prepare, side = "clip", staticmethod(letterbox), 224

    def __init__(self, folder):
        import open_clip

        self.model = open_clip.create_model("ViT-H-14", pretrained=str(folder / "open_clip_model.safetensors")).eval()
        self.tokenizer = open_clip.get_tokenizer("ViT-H-14")

    def images(self, pixels):
        return unit(self.model.encode_image(pixels))

    def captions(self, texts):
        return unit(self.model.encode_text(self.tokenizer(texts)))

    def scores(self, images, captions):
        return (images * captions).sum(-1)


def peer(case, folder):
    """Loads, says so, and scores the table that each line of standard input names, with the batch size that it names."""
    import torch
    from PIL import Image

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    if case == "mini":
        kinds = {"hps": letterbox, "clip": letterbox, "pickscore": processor, "aesthetic": processor}
        metrics = [Clip(m, MINI / "scorers" / m, prepare, 64) for m, prepare in kinds.items()]
    elif case == "clip-h":
        metrics = [OpenClip(folder)]
    else:
        metrics = [Clip("aesthetic", folder, processor, 224)]
    preparations = {(m.prepare, m.side) for m in metrics}
    threads = ThreadPoolExecutor(args.threads)

    def read(jpeg):
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        return {key: key[0](image, key[1]) for key in preparations}

    def score(table, batch):
        rows = pq.read_table(table, columns=["caption", "jpg_0", "jpg_1"]).to_pydict()
        jpegs, texts = list(dict.fromkeys(rows["jpg_0"] + rows["jpg_1"])), list(dict.fromkeys(rows["caption"]))
        images, captions = {m.name: [] for m in metrics}, {m.name: [] for m in metrics}
        for start in range(0, len(jpegs), batch):
            ready = list(threads.map(read, jpegs[start:start + batch]))
            for m in metrics:
                images[m.name].append(m.images(torch.stack([r[m.prepare, m.side] for r in ready])))
        for start in range(0, len(texts), batch):
            for m in metrics:
                captions[m.name].append(m.captions(texts[start:start + batch]))
        image_of, text_of = {j: i for i, j in enumerate(jpegs)}, {t: i for i, t in enumerate(texts)}
        which = torch.tensor([text_of[c] for c in rows["caption"]])
        out = {}
        for m in metrics:
            x, t = torch.cat(images[m.name]), captions[m.name]
            t = torch.cat(t)[which] if t[0] is not None else None
            for side in (0, 1):
                out[f"{m.name}_{side}"] = m.scores(x[torch.tensor([image_of[j] for j in rows[f"jpg_{side}"]])], t).tolist()
        return out

    print("ready", flush=True)
    for line in sys.stdin:
        table, batch = json.loads(line)
        began = time.monotonic()
        scores = score(table, batch)
        print(json.dumps([time.monotonic() - began, scores]), flush=True)


# --- the comparison ----------------------------------------------------------------------------------------------------


class Peer:
    def __init__(self, case, folder):
        command = [sys.executable, __file__, "--peer", case, "--folder", str(folder), "--threads", str(args.threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "passive"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout.readline() == "ready\n", "the peer did not start"

    def run(self, table, batch):
        print(json.dumps([str(table), batch]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        """Peak memory, MiB."""
        self.process.stdin.close()
        return os.wait4(self.process.pid, 0)[2].ru_maxrss / 1024


def ours(table, flags):
    """Seconds, peak memory in MiB, scores."""
    out = table.with_name("scores.parquet")
    command = [args.bin / "score", table, "-o", out, "--threads", args.threads, "-q", *flags]
    began = time.monotonic()
    pid = subprocess.Popen([str(c) for c in command]).pid
    _, status, used = os.wait4(pid, 0)
    seconds = time.monotonic() - began
    assert status == 0, "score failed"
    return seconds, used.ru_maxrss / 1024, pq.read_table(out).to_pydict()


def compare(case, folder):
    table, one, flags = prepare(case, folder)
    rows = pq.read_table(table, columns=["jpg_0", "jpg_1"]).to_pydict()
    images = len(set(rows["jpg_0"] + rows["jpg_1"]))
    peer = Peer(case, folder)
    peer.run(one, 2)  # first use of every kernel
    batch = min([16, 64, 256], key=lambda b: peer.run(table, b)[0]) if case == "mini" else 2 * args.real_pairs
    a, b, memory, starts = [], [], 0, []
    for _ in range(args.rounds):
        start, _, _ = ours(one, flags)
        seconds, peak, mine = ours(table, flags)
        starts.append(start)
        a.append(seconds - start)
        memory = max(memory, peak)
        seconds, theirs = peer.run(table, batch)
        b.append(seconds)
    gap = max(abs(x - y) for name, column in theirs.items() for x, y in zip(column, mine[name]))
    peer_memory = peer.close()
    assert gap < 1e-4, f"the two sides differ by {gap}"
    per_second = [(images - 2) / statistics.median(a), images / statistics.median(b)]
    print(
        f"{case}: ratio {per_second[0] / per_second[1]:.2f}; ours {per_second[0]:.2f} images/s, {memory:.0f} MiB,"
        f" {statistics.median(starts):.1f} s to start; peer {per_second[1]:.2f} images/s, {peer_memory:.0f} MiB"
        f" ({images} images, {args.threads} threads, medians of {args.rounds}, peer's batch {batch}, scores within {gap:.0e})",
        flush=True,
    )


args = parser.parse_args()
if args.make:
    make(args.make, args.folder)
elif args.peer:
    peer(args.peer, args.folder)
else:
    with tempfile.TemporaryDirectory() as tmp:
        for case in args.cases:
            compare(case, (args.folder or Path(tmp)) / case)
