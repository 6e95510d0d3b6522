"""Scores of the mini world's first pairs by transformers (CLIPModel, CLIPImageProcessor, AutoTokenizer), in f32.

    python tests/oracle/score.py 24 > tests/fixtures/score.json

One key a metric, a list [image 0, image 1] a pair. All images have the towers' own 64 pixels, so that letterbox and
centre crop leave them as they are.
"""

import io
import json
import pathlib
import sys

import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

MINI = pathlib.Path(__file__).parents[2] / "pipelines/mini"
torch.set_grad_enabled(False)
pairs = pq.read_table(MINI / "pairs.parquet", columns=["jpg_0", "jpg_1", "caption"]).slice(0, int(sys.argv[1]))
jpgs = [jpg for row in zip(pairs["jpg_0"].to_pylist(), pairs["jpg_1"].to_pylist()) for jpg in row]
images = [Image.open(io.BytesIO(jpg)).convert("RGB") for jpg in jpgs]


def unit(x):
    x = getattr(x, "pooler_output", x)
    return x / x.norm(dim=-1, keepdim=True)


scores = {}
for metric in ["hps", "clip", "pickscore", "aesthetic"]:
    folder = MINI / "scorers" / metric
    model = CLIPModel.from_pretrained(folder).float().eval()
    pixels = CLIPImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    image = unit(model.get_image_features(pixel_values=pixels))
    if metric == "aesthetic":
        head = torch.load(folder / "head.pth", map_location="cpu")
        for layer in [0, 2, 4, 6, 7]:
            image = image @ head[f"layers.{layer}.weight"].float().T + head[f"layers.{layer}.bias"].float()
        score = image.view(-1, 2)
    else:
        context = model.config.text_config.max_position_embeddings
        ids = AutoTokenizer.from_pretrained(folder)(
            pairs["caption"].to_pylist(), padding="max_length", truncation=True, max_length=context, return_tensors="pt"
        )
        text = unit(model.get_text_features(**ids))
        score = (image.view(len(text), 2, -1) * text[:, None]).sum(-1)
    scores[metric] = [[round(x, 6) for x in row] for row in score.tolist()]
print("{" + ",\n".join(f'"{m}": {json.dumps(s)}' for m, s in scores.items()) + "}")
