"""Makes tests/fixtures/lora: adapters as diffusers writes them, and what peft computes with them.

    OMP_NUM_THREADS=1 python tests/oracle/lora.py tests/fixtures/oracle tests/fixtures/lora

Made with Python 3.11, torch 2.15.0, diffusers 0.42.1, peft 0.21.2. The UNet is that of tests/oracle/dpo.py, everything in f64.

  pytorch_lora_weights.safetensors   adapters of rank 2 and alpha 3, written by StableDiffusionPipeline.save_lora_weights
  expected.safetensors               unet.out: the adapted UNet's answer to the oracle's unet.sample; grad.TENSOR: the gradient of
                                     the DPO loss on step 0 of the replay file, the reference being the UNet without adapters
  expected.json                      loss and z of that step
"""

import json
import pathlib
import sys

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

oracle, out = map(pathlib.Path, sys.argv[1:3])
out.mkdir(parents=True, exist_ok=True)
BETA, TARGETS = 300.0, ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "proj_in"]

unet = UNet2DConditionModel.from_pretrained(oracle / "base/unet").double().eval().requires_grad_(False)
given = load_file(oracle / "expected.safetensors")
replay = load_file(oracle / "replay.safetensors")
states = given["text.states"][:2].double()
timesteps = replay["0.timesteps"]
scheduler = DDIMScheduler.from_pretrained(oracle / "base/scheduler")
a = scheduler.alphas_cumprod.double()[timesteps].view(-1, 1, 1, 1)
noise = replay["0.noise"].double()
noisy = a.sqrt() * replay["0.latents"].double() + (1 - a).sqrt() * noise


def errors():
    return (unet(noisy, timesteps, states.repeat(2, 1, 1)).sample - noise).pow(2).mean(dim=[1, 2, 3])


with torch.no_grad():
    rw, rl = errors().chunk(2)

unet.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS, init_lora_weights="gaussian"))
torch.manual_seed(11)
adapters = {k: (0.3 * torch.randn(v.shape)).half() for k, v in sorted(get_peft_model_state_dict(unet).items())}
set_peft_model_state_dict(unet, {k: v.double() for k, v in adapters.items()})
unet.double()
StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=adapters, **_collate_lora_metadata({"unet": unet}))

with torch.no_grad():
    answer = unet(given["unet.sample"].double(), given["unet.timestep"], states).sample
pw, pl = errors().chunk(2)
inside = -0.5 * BETA * ((pw - pl) - (rw - rl))
loss = -F.logsigmoid(inside).mean()
loss.backward()
expected = {"unet.out": answer}
for name, p in unet.named_parameters():
    if p.requires_grad:
        expected["grad." + name.replace(".default", "")] = p.grad
assert len(expected) == len(adapters) + 1
save_file({k: v.float().contiguous() for k, v in expected.items()}, out / "expected.safetensors")
numbers = {"beta": BETA, "targets": TARGETS, "loss": loss.item(), "z": inside.tolist()}
(out / "expected.json").write_text(json.dumps(numbers, indent=1) + "\n")
print(numbers, len(adapters), max(v.abs().max() for v in expected.values()))
