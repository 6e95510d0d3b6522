"""Makes tests/fixtures/sample: very small models in the layouts of Stable Diffusion 2.1 and SDXL, and what diffusers' pipelines draw with them.

    OMP_NUM_THREADS=1 python tests/oracle/sample.py tests/fixtures/sample tests/fixtures/oracle/base/tokenizer

Made with Python 3.11, torch 2.15.0, diffusers 0.42.1, transformers 5.23.0. Weights are stored in half precision, and the
pipelines compute in f32 from what was stored. Both UNets predict v; files are laid out in different published ways:

  sd21/   one text encoder, `!` as padding, DDIM's config; UNet in two shards with an index
  sdxl/   two text encoders with tokenizers of their own, Euler's config; text encoders and VAE as fp16 variants
  noise.safetensors      latents of every size that is drawn
  expected.safetensors   <model>.<case>.latents; <model>.0.image_u8, rows first; sdxl.{states,pooled} of the prompts
  cases.json             what was asked for
"""

import json
import pathlib
import shutil
import sys
import warnings

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

warnings.filterwarnings("ignore")
OUT, VOCABULARY = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
CLASSES = {"ddim": DDIMScheduler, "pndm": PNDMScheduler, "dpmpp": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}
PROMPTS = ["a red bicycle", "PORTRAIT of a robot! 3d style!"]
BETAS = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "trained_betas": None, "prediction_type": "v_prediction"}
SCHEDULERS = {
    "sd21": {"_class_name": "DDIMScheduler", **BETAS, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False},
    "sdxl": {"_class_name": "EulerDiscreteScheduler", **BETAS, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False, "skip_prk_steps": True, "interpolation_type": "linear", "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False},
}
# scheduler, steps, guidance, negative prompt, time ids
CASES = {
    "sd21": [("ddim", 10, 7.5, None), ("pndm", 6, 3.0, None), ("dpmpp", 7, 7.5, "blurry!"), ("euler", 15, 5.0, "blurry!"), ("euler", 3, 1.0, None)],
    "sdxl": [("euler", 10, 5.0, None), ("ddim", 7, 7.5, None), ("pndm", 7, 4.0, "a grey sea"), ("dpmpp", 16, 5.0, ""), ("dpmpp", 2, 1.0, None, [64, 48, 3, 5, 32, 24]), ("euler", 3, 6.0, None, [20, 30, 0, 1, 16, 16])],
}


def shake(model, scale=0.1):
    """Norms and biases away from one and zero, so that a mixed-up tensor shows; what is stored is what is computed with."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(scale * torch.randn_like(p))
            p.copy_(p.half().float())
    return model.eval()


def config(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=1))


def half(tensors):
    return {k: v.half().contiguous() for k, v in tensors.items() if "position_ids" not in k}


def tokenizer(folder, pad):
    shutil.copytree(VOCABULARY, folder)
    for name in ["special_tokens_map.json", "tokenizer_config.json"]:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | {"pad_token": pad}, indent=1))
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(folder, file, cls, width, act, projection):
    n = len(json.loads((VOCABULARY / "vocab.json").read_text()))
    values = {"architectures": [cls.__name__], "model_type": "clip_text_model", "vocab_size": n, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 16, "hidden_act": act, "layer_norm_eps": 1e-05, "projection_dim": projection, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    model = shake(cls(CLIPTextConfig(**values)))
    config(folder, values)
    prefixed = lambda k: k if k.startswith(("text_model.", "text_projection")) else "text_model." + k
    save_file({prefixed(k): v for k, v in half(model.state_dict()).items()}, folder / file)
    return model


def unet(folder, **more):
    values = {"_class_name": "UNet2DConditionModel", "act_fn": "silu", "block_out_channels": [8, 16], "center_input_sample": False, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 4, "out_channels": 4, "sample_size": 8, "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True, **more}
    config(folder, values)
    return shake(UNet2DConditionModel(**{k: v for k, v in values.items() if k != "_class_name"}))


def vae(folder, file, **more):
    values = {"_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D"] * 2, "in_channels": 3, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4, "out_channels": 3, "sample_size": 16, "up_block_types": ["UpDecoderBlock2D"] * 2, **more}
    model = shake(AutoencoderKL(**{k: v for k, v in values.items() if k != "_class_name"}))
    config(folder, values)
    save_file(half(model.state_dict()), folder / file)
    return model


def index(folder, values):
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULERS[folder.name], indent=1))
    (folder / "model_index.json").write_text(json.dumps(values, indent=1))


torch.manual_seed(21)
shutil.rmtree(OUT, ignore_errors=True)
sd21 = OUT / "sd21"
sd21_unet = unet(sd21 / "unet", attention_head_dim=[2, 4], cross_attention_dim=12, upcast_attention=True)
tensors = half(sd21_unet.state_dict())
names = sorted(tensors)
shards = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
for file, held in shards.items():
    save_file({k: tensors[k] for k in held}, sd21 / "unet" / file)
weight_map = {k: file for file, held in shards.items() for k in held}
(sd21 / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1))
index(sd21, {"_class_name": "StableDiffusionPipeline"})
sd21_pipe = StableDiffusionPipeline(
    vae=vae(sd21 / "vae", "diffusion_pytorch_model.safetensors"),
    text_encoder=text_encoder(sd21 / "text_encoder", "model.safetensors", CLIPTextModel, 12, "gelu", 16),
    tokenizer=tokenizer(sd21 / "tokenizer", "!"),
    unet=sd21_unet,
    scheduler=DDIMScheduler.from_config(SCHEDULERS["sd21"]),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)

sdxl = OUT / "sdxl"
sdxl_unet = unet(sdxl / "unet", attention_head_dim=[2, 4], cross_attention_dim=8 + 12, transformer_layers_per_block=[1, 2], addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=16 + 6 * 4)
save_file(half(sdxl_unet.state_dict()), sdxl / "unet/diffusion_pytorch_model.fp16.safetensors")
index(sdxl, {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True})
sdxl_pipe = StableDiffusionXLPipeline(
    vae=vae(sdxl / "vae", "diffusion_pytorch_model.fp16.safetensors", scaling_factor=0.13025, force_upcast=True),
    text_encoder=text_encoder(sdxl / "text_encoder", "model.fp16.safetensors", CLIPTextModel, 8, "quick_gelu", 8),
    text_encoder_2=text_encoder(sdxl / "text_encoder_2", "model.fp16.safetensors", CLIPTextModelWithProjection, 12, "gelu", 16),
    tokenizer=tokenizer(sdxl / "tokenizer", "<|endoftext|>"),
    tokenizer_2=tokenizer(sdxl / "tokenizer_2", "!"),
    unet=sdxl_unet,
    scheduler=EulerDiscreteScheduler.from_config(SCHEDULERS["sdxl"]),
    force_zeros_for_empty_prompt=True, add_watermarker=False,
)

noise, expected, asked = torch.randn(len(PROMPTS), 4, 12, 8), {}, []
for name, pipe in [("sd21", sd21_pipe), ("sdxl", sdxl_pipe)]:
    pipe.set_progress_bar_config(disable=True)
    for i, (scheduler, steps, guidance, negative, *ids) in enumerate(CASES[name]):
        pipe.scheduler = CLASSES[scheduler].from_config(SCHEDULERS[name])
        settings = {"prompt": PROMPTS, "num_inference_steps": steps, "guidance_scale": guidance, "latents": noise, "height": 24, "width": 16}
        if negative is not None:
            settings["negative_prompt"] = [negative] * len(PROMPTS)
        if ids:
            settings |= {"original_size": tuple(ids[0][:2]), "crops_coords_top_left": tuple(ids[0][2:4]), "target_size": tuple(ids[0][4:])}
        expected[f"{name}.{i}.latents"] = pipe(**settings, output_type="latent").images
        if i == 0:
            image = pipe(**settings, output_type="np").images
            expected[f"{name}.0.image_u8"] = torch.from_numpy((image * 255).round().astype("uint8"))
        asked.append({"model": name, "case": i, "scheduler": scheduler, "steps": steps, "guidance": guidance, "negative": negative, "time_ids": ids[0] if ids else None})
states, _, pooled, _ = sdxl_pipe.encode_prompt([*PROMPTS, ""], do_classifier_free_guidance=False)
expected |= {"sdxl.states": states, "sdxl.pooled": pooled}
save_file({k: v.detach().contiguous() for k, v in expected.items()}, OUT / "expected.safetensors")
save_file({"latents": noise}, OUT / "noise.safetensors")
(OUT / "cases.json").write_text(json.dumps({"prompts": PROMPTS, "cases": asked}, indent=1) + "\n")
for k, v in expected.items():
    print(k, tuple(v.shape), f"{v.double().std():.3f}", f"{v.double().abs().max():.3f}")
