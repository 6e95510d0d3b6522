"""How scorers/imagereward was made: a small judge in ImageReward's layout that votes on nothing (PyTorch, 15 minutes).

    python pipelines/mini/judge.py pipelines/mini /tmp/judge     # needs torch, diffusers, tokenizers, safetensors, pyarrow, pillow

It learns the taste of the annotator of pairs.parquet, who compares an image with the real artwork of its caption and prefers the
nearer one. It reads no pair and no caption of a pair: artwork.parquet has the captions that pairs.parquet leaves out. The images
to compare are artwork (damaged or of other captions) and drawings of `base`, from noise or from half-noised artwork. No image of
an aligned model is among them.
"""
import io, json, math, os, random, sys, time

import numpy as np, pyarrow.parquet as pq, torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

MINI, OUT = sys.argv[1:3]
THREADS, STEPS = int(os.environ.get("THREADS", 2)), int(os.environ.get("STEPS", 1200))
CAPTIONS, IMAGES = 8, 8        # captions per step, images to rank per caption
DRAWINGS = 12                   # drawings per caption
WIDTH, BLOCKS, LAYERS, TOKENS, VOCABULARY = 64, 4, 2, 35, 700
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)

torch.set_num_threads(THREADS)
torch.manual_seed(0)
random.seed(0)
os.makedirs(OUT, exist_ok=True)


def pixels(data):
    """An encoded image as numbers in [0, 1], (3, 64, 64)."""
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).copy()).permute(2, 0, 1).float() / 255


# ---- the annotator: `distance` is the one that made pairs.parquet

def edges(x):
    return torch.cat([(x[..., 1:, :-1] - x[..., :-1, :-1]).abs(), (x[..., :-1, 1:] - x[..., :-1, :-1]).abs()], 1)


def distance(images, artwork):
    """(B, 3, 64, 64) twice -> (B): the mean difference at four scales and that of the edges; the artwork or its mirror image, whichever is nearer."""
    def one(b):
        pooled = sum((F.avg_pool2d(images, k) - F.avg_pool2d(b, k)).abs().mean((1, 2, 3)) for k in (1, 2, 4, 8)) / 4
        return pooled + 0.5 * (F.avg_pool2d(edges(images), 4) - F.avg_pool2d(edges(b), 4)).abs().mean((1, 2, 3))
    return torch.minimum(one(artwork), one(artwork.flip(3)))


def prefers(d0, d1):
    """The probability that the noisy annotator prefers the image at distance d0 to that at d1."""
    u = (d1 - d0) / (d1 + d0) * 2 / 0.7
    return 0.5 * (1 + torch.erf(u / math.sqrt(2)))


# ---- drawings of `base`: DDIM with guidance, from noise or from half-noised artwork

@torch.no_grad()
def draw(captions, artwork):
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizerFast
    load = lambda kind, name: kind.from_pretrained(f"{MINI}/base/{name}").float().eval()
    vae, unet, encoder = load(AutoencoderKL, "vae"), load(UNet2DConditionModel, "unet"), load(CLIPTextModel, "text_encoder")
    tokenizer = CLIPTokenizerFast.from_pretrained(f"{MINI}/base/tokenizer")
    scheduler = DDIMScheduler.from_pretrained(f"{MINI}/base/scheduler", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    ids = lambda texts: tokenizer(texts, padding="max_length", max_length=24, truncation=True, return_tensors="pt").input_ids
    scale, empty = vae.config.scaling_factor, encoder(ids([""]))[0]
    drawn, rows = [], []
    for round in range(DRAWINGS):
        order = random.sample(range(len(captions)), len(captions))
        for start in range(0, len(order), 64):
            of = order[start:start + 64]
            guidance, strength = (random.choice([2, 4, 6]), 1) if round % 2 else (1, random.uniform(0.3, 1))
            scheduler.set_timesteps(random.choice([8, 12]))
            steps = scheduler.timesteps[int((1 - strength) * len(scheduler.timesteps)):]
            x = torch.randn(len(of), 4, 16, 16)
            if strength < 1:
                x = scheduler.add_noise(vae.encode(artwork[of] * 2 - 1).latent_dist.mean * scale, x, steps[:1])
            context = torch.cat([empty.expand(len(of), -1, -1), encoder(ids([captions[i] for i in of]))[0]])
            for t in steps:
                if guidance == 1:
                    predicted = unet(x, t, context[len(of):]).sample
                else:
                    without, with_text = unet(torch.cat([x, x]), t, context).sample.chunk(2)
                    predicted = without + guidance * (with_text - without)
                x = scheduler.step(predicted, t, x).prev_sample
            drawn.append((vae.decode(x / scale).sample.clamp(-1, 1) * 127.5 + 127.5).round().byte())
            rows += of
        print("drawn", round + 1, "of", DRAWINGS, flush=True)
    return torch.cat(drawn), torch.tensor(rows)


def damaged(x, by):
    """Artwork (3, 64, 64), spoiled by `by` in [0, 1]: blurred, noisy, grey or with its parts moved."""
    kind = random.randrange(4)
    if kind == 0:
        small = F.interpolate(x[None], size=max(8, int(64 * (1 - 0.85 * by))), mode="bilinear", antialias=True)
        return F.interpolate(small, size=64, mode="bilinear")[0]
    if kind == 1:
        return (x + torch.randn_like(x) * 0.35 * by).clamp(0, 1)
    if kind == 2:
        return x * (1 - 0.9 * by) + 0.9 * by * (x.mean(0, keepdim=True) * 0.7 + 0.3 * torch.rand(3, 1, 1))
    bend = F.interpolate(torch.randn(1, 2, 6, 6) * by * 0.35, size=(64, 64), mode="bicubic").permute(0, 2, 3, 1)
    return F.grid_sample(x[None], F.affine_grid(torch.eye(2, 3)[None], (1, 3, 64, 64), align_corners=False) + bend, padding_mode="border", align_corners=False)[0]


# ---- the network, with ImageReward's own tensor names

class Block(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(w, eps=1e-6), nn.LayerNorm(w, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(w, 3 * w), "proj": nn.Linear(w, w)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(w, 4 * w), "fc2": nn.Linear(4 * w, w)})

    def forward(self, x):
        b, n, w = x.shape
        q, k, v = self.attn["qkv"](self.norm1(x)).view(b, n, 3, w // 64, 64).permute(2, 0, 3, 1, 4)   # a head is 64 wide
        x = x + self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, w))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Vision(nn.Module):
    def __init__(self, w, patch=8, side=64):
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, w)), nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, w) * 0.02)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, w, patch, patch)})
        self.blocks, self.norm = nn.ModuleList([Block(w) for _ in range(BLOCKS)]), nn.LayerNorm(w, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def attention(w):
    parts = lambda **kw: nn.ModuleDict(kw)
    return parts(self=parts(query=nn.Linear(w, w), key=nn.Linear(w, w), value=nn.Linear(w, w)),
                 output=parts(dense=nn.Linear(w, w), LayerNorm=nn.LayerNorm(w, eps=1e-12)))


class Layer(nn.Module):
    heads = 4

    def __init__(self, w):
        super().__init__()
        self.attention, self.crossattention = attention(w), attention(w)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(w, 4 * w)})
        self.output = nn.ModuleDict({"dense": nn.Linear(4 * w, w), "LayerNorm": nn.LayerNorm(w, eps=1e-12)})

    def attend(self, a, x, context, mask):
        split = lambda y: y.view(y.shape[0], y.shape[1], self.heads, -1).transpose(1, 2)
        q, k, v = split(a["self"]["query"](x)), split(a["self"]["key"](context)), split(a["self"]["value"](context))
        y = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        return a["output"]["LayerNorm"](a["output"]["dense"](y) + x)

    def forward(self, x, image, mask):
        x = self.attend(self.attention, x, x, mask)
        x = self.attend(self.crossattention, x, image, None)
        return self.output["LayerNorm"](self.output["dense"](F.gelu(self.intermediate["dense"](x))) + x)


class Text(nn.Module):
    def __init__(self, w, vocabulary):
        super().__init__()
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(vocabulary, w), "position_embeddings": nn.Embedding(TOKENS, w), "LayerNorm": nn.LayerNorm(w, eps=1e-12)})
        nn.init.normal_(self.embeddings["word_embeddings"].weight, std=0.1), nn.init.normal_(self.embeddings["position_embeddings"].weight, std=0.05)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([Layer(w) for _ in range(LAYERS)])})

    def forward(self, ids, image):
        mask = (ids != 0)[:, None, None, :]
        e = self.embeddings
        x = e["LayerNorm"](e["word_embeddings"](ids) + e["position_embeddings"].weight[:ids.shape[1]])
        for layer in self.encoder["layer"]:
            x = layer(x, image, mask)
        return x[:, 0]


class Judge(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.blip = nn.ModuleDict({"visual_encoder": Vision(WIDTH), "text_encoder": Text(WIDTH, vocabulary)})
        sizes, at = [WIDTH, 64, 32, 32, 16, 1], ["0", "2", "4", "6", "7"]        # the published head has no activation either
        self.mlp = nn.ModuleDict({"layers": nn.ModuleDict({a: nn.Linear(*s) for a, s in zip(at, zip(sizes, sizes[1:]))})})

    def forward(self, images, ids):
        h = self.blip["text_encoder"](ids, self.blip["visual_encoder"]((images - MEAN) / STD))
        for layer in self.mlp["layers"].values():
            h = layer(h)
        return h[:, 0]


# ---- data

table = pq.read_table(f"{MINI}/artwork.parquet").to_pylist()
captions = [row["caption"] for row in table]
artwork = torch.stack([pixels(row["image"]) for row in table])
cache = f"{OUT}/drawings.pt"
if not os.path.exists(cache):
    torch.save(draw(captions, artwork), cache)
drawings, rows = torch.load(cache)
drawings_of = [[j for j, r in enumerate(rows.tolist()) if r == i] for i in range(len(captions))]

from tokenizers import BertWordPieceTokenizer
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
published, vocabulary = f"{MINI}/scorers/imagereward/vocab.txt", f"{OUT}/vocab.txt"
if os.path.exists(published):                   # a second training of the vocabulary orders equal pieces otherwise
    open(vocabulary, "w").write(open(published).read())
if not os.path.exists(vocabulary):
    wordpiece = BertWordPieceTokenizer(lowercase=True)
    wordpiece.train_from_iterator(captions, vocab_size=VOCABULARY, min_frequency=1, special_tokens=SPECIAL, show_progress=False)
    wordpiece.save_model(OUT)
wordpiece = BertWordPieceTokenizer(vocabulary, lowercase=True)
wordpiece.enable_padding()
KNOWN = wordpiece.get_vocab_size() + 2                                               # [DEC] and [ENC] come behind it
encode = lambda texts: torch.tensor([e.ids for e in wordpiece.encode_batch(texts)])


def shifted(x):
    """Moved by up to four pixels, and mirrored half of the time: neither changes an image's worth."""
    dx, dy = random.randint(0, 8), random.randint(0, 8)
    x = F.pad(x[None], (4, 4, 4, 4), value=1.0)[0, :, dy:dy + 64, dx:dx + 64]
    return x.flip(2) if random.random() < 0.5 else x


def group(i):
    """IMAGES images to rank under caption i, and their distances to its artwork: mostly its drawings, two of damaged artwork, two of other captions."""
    own = random.sample(drawings_of[i], IMAGES - 4)
    style = [k for k in range(len(captions)) if captions[k].rsplit(", ", 1)[1] == captions[i].rsplit(", ", 1)[1]]
    others = [random.choice(random.choice([style, range(len(captions))])) for _ in range(2)]
    images = [drawings[j].float() / 255 for j in own]
    images += [damaged(artwork[i], random.random()) for _ in range(2)]
    images += [drawings[random.choice(drawings_of[k])].float() / 255 if random.random() < 0.6 else artwork[k] for k in others]
    images = torch.stack(images)
    return torch.stack([shifted(x) for x in images]), distance(images, artwork[i].expand_as(images))


# ---- training: the annotator's probability for every two images of a caption

judge = Judge(KNOWN)
print("parameters", sum(p.numel() for p in judge.parameters()), "captions", len(captions), "vocabulary", KNOWN, flush=True)
decayed = [p for p in judge.parameters() if p.dim() > 1]
optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": [p for p in judge.parameters() if p.dim() < 2], "weight_decay": 0}], lr=1e-3, betas=(0.9, 0.98))
first, second = torch.triu_indices(IMAGES, IMAGES, 1)
started, shown = time.time(), None
for step in range(STEPS):
    for g in optimizer.param_groups:
        g["lr"] = 1e-3 * min(1, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * step / STEPS)) + 0.01)
    chosen = random.sample(range(len(captions)), CAPTIONS)
    images, distances = map(torch.stack, zip(*[group(i) for i in chosen]))            # (C, I, 3, 64, 64), (C, I)
    ids = encode([captions[i] for i in chosen]).repeat_interleave(IMAGES, 0)
    reward = judge(images.flatten(0, 1), ids).view(CAPTIONS, IMAGES)
    target = prefers(distances[:, first], distances[:, second])
    margin = reward[:, first] - reward[:, second]
    loss = F.binary_cross_entropy_with_logits(margin, target)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
    optimizer.step()
    drawn = (first < IMAGES - 4) & (second < IMAGES - 4)
    now = [loss.item(), ((margin > 0) == (target > 0.5))[:, drawn].float().mean().item(), ((margin > 0) == (target > 0.5))[:, ~drawn].float().mean().item()]
    shown = [0.98 * a + 0.02 * b for a, b in zip(shown, now)] if shown else now
    if step % 50 == 49:
        print(step + 1, "loss, agreement on drawings, on the others", [round(v, 3) for v in shown], round(time.time() - started), "s", flush=True)

# The mean over drawings of `base` from noise becomes 0 and their standard deviation 1, as ImageReward's are over Stable Diffusion's.
judge.eval()
with torch.no_grad():
    sample = random.sample(range(len(drawings)), 1000)
    reward = torch.cat([judge(drawings[sample[b:b + 100]].float() / 255, encode([captions[r] for r in rows[sample[b:b + 100]]])) for b in range(0, 1000, 100)])
    last = judge.mlp["layers"]["7"]
    last.weight.mul_(1.0333394966054072 / reward.std())
    last.bias.copy_((last.bias - reward.mean()) * 1.0333394966054072 / reward.std() + 0.16717362830052426)

save_file({name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}, f"{OUT}/model.safetensors")
json.dump(dict(architectures=["BertModel"], hidden_act="gelu", hidden_size=WIDTH, intermediate_size=4 * WIDTH, layer_norm_eps=1e-12, max_position_embeddings=TOKENS, model_type="bert",
               num_attention_heads=Layer.heads, num_hidden_layers=LAYERS, pad_token_id=0, vocab_size=KNOWN, encoder_width=WIDTH, add_cross_attention=True), open(f"{OUT}/med_config.json", "w"), indent=1)
