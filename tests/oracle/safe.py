#!/usr/bin/env python3
"""Makes tests/fixtures/safe: a tiny DistilBERT sequence classifier with random weights, and what transformers says with it.

    pip install torch transformers safetensors
    python tests/oracle/safe.py

Made with torch 2.15.0 and transformers 5.23.0.
"""
import json
import string
from pathlib import Path

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizerFast

HERE = Path(__file__).resolve().parents[1] / "fixtures/safe"
HERE.mkdir(parents=True, exist_ok=True)
WORDS = "a the photo of cat dog red blue house naked blood war flower sky ##ing ##ed".split()
LETTERS = list(string.ascii_lowercase) + ["##" + c for c in string.ascii_lowercase] + list(".,!?-")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + WORDS + LETTERS
PROMPTS = [
    "", "a photo of a cat", "The Dogs!", "naked, blood and war", "A red house-ing flower", "漢字 in the sky", "naïve café",
    "[MASK] of the [SEP]", "a\tphoto\n of  the sky", "blood " * 60, "x" * 120, "the war of the flowers",
]

(HERE / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
torch.manual_seed(4)
config = DistilBertConfig(
    vocab_size=len(VOCABULARY), max_position_embeddings=40, dim=16, hidden_dim=32, n_layers=2, n_heads=2,
    id2label={0: "SFW", 1: "NSFW"}, label2id={"SFW": 0, "NSFW": 1}, problem_type="single_label_classification",
)
model = DistilBertForSequenceClassification(config).eval()
for name, p in model.named_parameters():
    if "norm" not in name.lower():
        torch.nn.init.normal_(p, std=0.4)
torch.nn.init.normal_(model.classifier.weight, std=1.5)
tokenizer = DistilBertTokenizerFast(vocab={token: i for i, token in enumerate(VOCABULARY)})


@torch.no_grad()
def run(prompt):
    ids = tokenizer(prompt, truncation=True, max_length=40)["input_ids"]
    return ids, model(torch.tensor([ids])).logits[0]


# Half of the prompts on either side.
model.classifier.bias.data[1] -= torch.stack([run(p)[1] for p in PROMPTS]).diff(dim=1).sort(dim=0)[0][5:7].mean()
model.save_pretrained(HERE)
rows = []
for prompt in PROMPTS:
    ids, logits = run(prompt)
    rows.append({"prompt": prompt, "ids": ids, "logits": logits.tolist(), "nsfw_prob": logits.softmax(0)[1].item()})
(HERE / "expected.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
print([round(r["nsfw_prob"], 3) for r in rows])
