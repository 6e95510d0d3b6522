"""Loads a checkpoint that `train` or `refresh-ref` wrote in diffusers, and names every key that is missing or unexpected.

    train ... -o out && python tests/oracle/loads_in_diffusers.py out [BASE]

With BASE, a Stable Diffusion folder, the whole pipeline is put together and draws one image in two steps; with adapters in
out/lora, they are loaded under both their names, and must draw what out/unet, merged, draws. Run by hand with
torch 2.15.0, diffusers 0.42.1, transformers 5.23.0; cargo's own tests check names, shapes and config against the base's.
"""

import pathlib
import sys

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open

out = sys.argv[1]
unet, info = UNet2DConditionModel.from_pretrained(out, subfolder="unet", output_loading_info=True)
assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
with safe_open(f"{out}/unet/diffusion_pytorch_model.safetensors", "pt") as f:
    stored = {name: f.get_tensor(name) for name in f.keys()}
    print("origin:", (f.metadata() or {}).get("origin", "none")[:120])
assert all(torch.equal(p, stored[name].to(p.dtype)) for name, p in unet.state_dict().items())
print(f"{len(stored)} tensors, {sum(t.numel() for t in stored.values())} numbers: all there, none besides")
if len(sys.argv) > 2:
    pipe = DiffusionPipeline.from_pretrained(sys.argv[2], unet=unet, torch_dtype=torch.float32)
    torch.manual_seed(0)
    image = pipe("a red bicycle", num_inference_steps=2, output_type="np").images
    assert torch.isfinite(torch.tensor(image)).all()
    print(type(pipe).__name__, "drew", image.shape)
    if pathlib.Path(out, "lora").is_dir():
        drawn = [image]
        for name in ("pytorch_lora_weights.safetensors", "kohya.safetensors"):
            pipe = DiffusionPipeline.from_pretrained(sys.argv[2], torch_dtype=torch.float32)
            pipe.load_lora_weights(f"{out}/lora", weight_name=name)
            pipe.set_progress_bar_config(disable=True)
            torch.manual_seed(0)
            drawn.append(pipe("a red bicycle", num_inference_steps=2, output_type="np").images)
        apart = [abs(a - drawn[0]).max() for a in drawn[1:]]
        assert max(apart) < 1e-4, apart
        print("adapters draw as merged weights do, to", apart)
