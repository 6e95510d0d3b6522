"""Makes tests/fixtures/oracle: a very small Stable Diffusion model in the published layout, and what the peers compute with it.

    OMP_NUM_THREADS=1 python tests/oracle/dpo.py tests/fixtures/oracle pipelines/mini/base/tokenizer/merges.txt

Made with Python 3.11, torch 2.15.0, diffusers 0.42.1, transformers 5.23.0. Weights are stored in half precision and every
number is computed from what was stored, in f64, so that only the other side rounds.

  base/            tokenizer, text_encoder, unet, vae, scheduler (PNDM's published keys)
  policy/unet/     the UNet that is trained; base/unet is the reference
  replay.safetensors     five steps of two pairs, as `train --replay` reads them
  expected.safetensors   text.states, unet.{sample,timestep,out}, vae.{image,mean,logvar,decoded}, grad.<tensor> of step 1,
                         step5.<tensor> after five AdamW steps, sample.{noise,latents,image_u8}
  expected.json          prompts and settings; loss, z, implicit accuracy, errors and gradient norm of each step
"""

import json
import pathlib
import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

OUT = pathlib.Path(sys.argv[1])
PROMPTS = ["a red bicycle", "PORTRAIT of a robot, 3d style!"]
BETA, LR, WD, CLIP, REFRESH_AFTER = 2000.0, 2e-5, 0.01, 1.0, 3
STEPS, GUIDANCE = 10, 7.5


def tokenizer(folder, merges_of):
    """CLIP's byte-level vocabulary with the first 96 merges."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in kept] + [chr(256 + i) for i in range(256 - len(kept))]
    merges = pathlib.Path(merges_of).read_text().splitlines()[1:97]
    words = letters + [c + "</w>" for c in letters] + [m.replace(" ", "") for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "do_lower_case": True, "add_prefix_space": False, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return len(words)


def shake(model, scale=0.1):
    """Norms and biases away from one and zero, so that a mixed-up tensor shows."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(scale * torch.randn_like(p))


def store(folder, config, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    name = "model.safetensors" if "text_encoder" in str(folder) else "diffusion_pytorch_model.safetensors"
    save_file({k: v.half().contiguous() for k, v in tensors.items()}, folder / name)


def as_stored(model, folder):
    name = next(folder.glob("*.safetensors"))
    missing = model.load_state_dict({k: v.double() for k, v in load_file(name).items()}, strict=False)
    assert not missing.unexpected_keys and all("position_ids" in k for k in missing.missing_keys), missing
    return model.double().eval().requires_grad_(False)


torch.manual_seed(7)
base = OUT / "base"
vocabulary = tokenizer(base / "tokenizer", sys.argv[2])
(base / "scheduler").mkdir(parents=True, exist_ok=True)
scheduler = {"_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None, "clip_sample": False, "skip_prk_steps": True}
(base / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler, indent=1))
(base / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}, indent=1))

text_config = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": vocabulary, "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-05, "projection_dim": 8, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
unet_config = {"_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 2, "block_out_channels": [8, 12], "center_input_sample": False, "cross_attention_dim": 8, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 4, "out_channels": 4, "sample_size": 8, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
vae_config = {"_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D"] * 2, "in_channels": 3, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4, "out_channels": 3, "sample_size": 16, "up_block_types": ["UpDecoderBlock2D"] * 2}

text = CLIPTextModel(CLIPTextConfig(**text_config))
shake(text)
prefixed = {k if k.startswith("text_model.") else "text_model." + k: v for k, v in text.state_dict().items() if "position_ids" not in k}
store(base / "text_encoder", text_config, prefixed)
unprefixed = {k: prefixed["text_model." + k.removeprefix("text_model.")].half().double() for k in text.state_dict() if "position_ids" not in k}
text.load_state_dict(unprefixed, strict=False)
text = text.double().eval().requires_grad_(False)

unet = UNet2DConditionModel(**{k: v for k, v in unet_config.items() if k != "_class_name"})
shake(unet)
store(base / "unet", unet_config, unet.state_dict())
with torch.no_grad():
    for p in unet.parameters():
        p.add_(0.03 * p.std(correction=0) * torch.randn_like(p) + 1e-3 * torch.randn_like(p))
store(OUT / "policy/unet", unet_config, unet.state_dict())
vae = AutoencoderKL(**{k: v for k, v in vae_config.items() if k != "_class_name"})
shake(vae)
store(base / "vae", vae_config, vae.state_dict())

reference = as_stored(UNet2DConditionModel.from_config(unet_config), base / "unet")
policy = as_stored(UNet2DConditionModel.from_config(unet_config), OUT / "policy/unet").requires_grad_(True)
vae = as_stored(AutoencoderKL.from_config(vae_config), base / "vae")
tokens = CLIPTokenizer.from_pretrained(base / "tokenizer")


def states(prompts):
    ids = tokens(prompts, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    return text(ids).last_hidden_state


ddim = DDIMScheduler.from_config({k: v for k, v in scheduler.items() if k not in ("_class_name", "skip_prk_steps")})
alphas = ddim.alphas_cumprod.double()
expected, b = {}, len(PROMPTS)
expected["text.states"] = states([*PROMPTS, ""])
sample, timestep = torch.randn(2, 4, 8, 6), torch.tensor([17.0, 901.0])
expected |= {"unet.sample": sample, "unet.timestep": timestep, "unet.out": policy(sample.double(), timestep, states(PROMPTS)).sample}
image = (torch.rand(1, 3, 16, 12) * 2 - 1).float()
posterior = vae.encode(image.double()).latent_dist
expected |= {"vae.image": image, "vae.mean": posterior.mean, "vae.logvar": posterior.logvar, "vae.decoded": vae.decode(posterior.mean).sample}

# Diffusion-DPO's train.py, lines "add noise" to "loss", on the replay file's numbers.
replay, log = {}, []
optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=WD)
context = states(PROMPTS).repeat(2, 1, 1)
for i in range(5):
    latents = torch.randn(2 * b, 4, 8, 8)
    noise = torch.randn(b, 4, 8, 8).repeat(2, 1, 1, 1)
    timesteps = torch.randint(0, 1000, (b,)).repeat(2)
    replay |= {f"{i}.latents": latents, f"{i}.noise": noise, f"{i}.timesteps": timesteps}
    a = alphas[timesteps].view(-1, 1, 1, 1)
    noisy = a.sqrt() * latents.double() + (1 - a).sqrt() * noise.double()

    def errors(net):
        return (net(noisy, timesteps, context).sample - noise.double()).pow(2).mean(dim=[1, 2, 3])

    pw, pl = errors(policy).chunk(2)
    with torch.no_grad():
        rw, rl = errors(reference).chunk(2)
    inside = -0.5 * BETA * ((pw - pl) - (rw - rl))
    loss = -F.logsigmoid(inside).mean()
    optimizer.zero_grad()
    loss.backward()
    if i == 0:
        expected |= {f"grad.{k}": p.grad.clone() for k, p in policy.named_parameters()}
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
    optimizer.step()
    if i + 1 == REFRESH_AFTER:
        reference.load_state_dict(policy.state_dict())
    mean = lambda x: x.mean().item()
    log.append({"loss": loss.item(), "z": inside.tolist(), "implicit_acc": mean((inside > 0).double() + 0.5 * (inside == 0)), "grad_norm": norm.item(), "policy_winner_mse": mean(pw), "policy_loser_mse": mean(pl), "reference_winner_mse": mean(rw), "reference_loser_mse": mean(rl)})
expected |= {f"step5.{k}": p.detach() for k, p in policy.named_parameters()}

# StableDiffusionPipeline.__call__ with DDIM, one image a prompt, the base's UNet.
base_unet = as_stored(UNet2DConditionModel.from_config(unet_config), base / "unet")
noise = torch.randn(b, 4, 8, 8)
x = noise.double()
ddim.set_timesteps(STEPS)
context = torch.cat([states([""] * b), states(PROMPTS)])
for t in ddim.timesteps:
    without, with_ = base_unet(torch.cat([x, x]), t, context).sample.chunk(2)
    x = ddim.step(without + GUIDANCE * (with_ - without), t, x).prev_sample
pixels = (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
expected |= {"sample.noise": noise, "sample.latents": x}
u8 = (pixels.permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")
expected["sample.image_u8"] = torch.from_numpy(u8)

keep = lambda v: v.detach().contiguous() if v.dtype in (torch.uint8, torch.int64) else v.detach().float().contiguous()
save_file({k: keep(v) for k, v in expected.items()}, OUT / "expected.safetensors")
save_file({k: keep(v) for k, v in replay.items()}, OUT / "replay.safetensors", metadata={"prompts": json.dumps(PROMPTS)})
settings = {"prompts": PROMPTS, "beta": BETA, "lr": LR, "weight_decay": WD, "refresh_after": REFRESH_AFTER, "steps": STEPS, "guidance": GUIDANCE}
(OUT / "expected.json").write_text(json.dumps(settings | {"log": log}, indent=1) + "\n")
print(json.dumps(log, indent=1), sum(p.numel() for p in policy.parameters()), x.std(), pixels.std())
