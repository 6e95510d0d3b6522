"""Makes tests/fixtures/flow: small models in the layout of Stable Diffusion 3.5 and FLUX.1 [dev], and what diffusers says of them.

    OMP_NUM_THREADS=1 python tests/oracle/flow.py tests/fixtures/oracle tests/fixtures/flow

Made with Python 3.11, torch 2.15.0, diffusers 0.42.1, transformers 5.24.0. Everything is computed in f64. The CLIP vocabulary is
that of tests/oracle/dpo.py; T5's tokenizer knows a few pieces.

  sd3/, flux/            the models, f16
  expected.safetensors   NAME.states (the first 40 tokens), NAME.pooled: two prompts and the empty one; NAME.sample, .timestep, .out: the transformer's
                         answer at a size that is not square; NAME.noise, .latents: the pipeline, 4 steps; sd3.heun: with Heun;
                         grad.TENSOR: the gradient of the DPO loss on step 0 of the replay file, where the policy is 17/16 of the
                         base, the table of positions excepted
  expected.json          prompts, loss and z
  replay.safetensors     one step of two pairs
"""

import json
import pathlib
import shutil
import sys

import torch
import torch.nn.functional as F
from diffusers import (AutoencoderKL, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FluxPipeline,
                       FluxTransformer2DModel, SD3Transformer2DModel, StableDiffusion3Pipeline)
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel,
                          T5TokenizerFast)

oracle, out = map(pathlib.Path, sys.argv[1:3])
shutil.rmtree(out, ignore_errors=True)
out.mkdir(parents=True)
BETA, PROMPTS = 100.0, ["a red bicycle", "two cats on a roof", ""]
torch.manual_seed(5)


def random(model, scale=0.3):
    for name, p in sorted(model.state_dict().items()):
        if p.is_floating_point() and not name.endswith("pos_embed.pos_embed"):
            near_one = "norm" in name and name.endswith("weight") and p.dim() == 1
            p.copy_((1.0 if near_one else 0.0) + scale * torch.randn(p.shape) / max(p[0].numel(), 1) ** 0.25)
    return model.half().double().eval()


pieces = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁red", "▁two", "▁cat", "▁on", "▁roof", "bi", "cycle", "s"] + list("abcdefghilmnortuvxyz")
unigram = models.Unigram([(p, 0.0 if i < 3 else -2.0 - 0.1 * i) for i, p in enumerate(pieces)], unk_id=2)
t5_tokenizer = Tokenizer(unigram)
t5_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
t5_tokenizer.decoder = decoders.Metaspace()
t5_tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])


def t5_tokens():
    return T5TokenizerFast(tokenizer_object=t5_tokenizer, extra_ids=0)


def clip(kind, hidden, heads, projection):
    return random(kind(CLIPTextConfig(vocab_size=610, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=2,
                                      num_attention_heads=heads, max_position_embeddings=16, projection_dim=projection,
                                      bos_token_id=608, eos_token_id=609, pad_token_id=609)))


def t5():
    return random(T5EncoderModel(T5Config(vocab_size=len(pieces), d_model=24, d_kv=5, d_ff=32, num_layers=2, num_heads=4,
                                          feed_forward_proj="gated-gelu", tie_word_embeddings=False)))


def vae():
    return random(AutoencoderKL(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
                                block_out_channels=[8, 8], layers_per_block=1, latent_channels=4, norm_num_groups=4,
                                sample_size=16, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False,
                                use_post_quant_conv=False))


def tokenizer():
    return CLIPTokenizer.from_pretrained(oracle / "base/tokenizer")


with torch.no_grad():
    sd3 = StableDiffusion3Pipeline(
        transformer=random(SD3Transformer2DModel(
            sample_size=8, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=24, caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=7,
            dual_attention_layers=[0], qk_norm="rms_norm")),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(),
        text_encoder=clip(CLIPTextModelWithProjection, 8, 2, 8), tokenizer=tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection, 12, 4, 8), tokenizer_2=tokenizer(),
        text_encoder_3=t5(), tokenizer_3=t5_tokens())
    flux = FluxPipeline(
        transformer=random(FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=12, num_attention_heads=2,
            joint_attention_dim=24, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(2, 4, 6))),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=vae(),
        text_encoder=clip(CLIPTextModel, 8, 2, 8), tokenizer=tokenizer(), text_encoder_2=t5(), tokenizer_2=t5_tokens())

    expected = {}
    for name, pipe in [("sd3", sd3), ("flux", flux)]:
        pipe.set_progress_bar_config(disable=True)
        more = {} if name == "flux" else {"do_classifier_free_guidance": False}
        encoded = pipe.encode_prompt(PROMPTS, PROMPTS, **({"prompt_3": PROMPTS} if name == "sd3" else {}), **more)
        states, pooled = (encoded[0], encoded[2]) if name == "sd3" else (encoded[0], encoded[1])
        expected |= {f"{name}.states": states[:, :40], f"{name}.pooled": pooled}
        of_sd3 = (states, pooled) if name == "sd3" else of_sd3
        sample, t = torch.randn(3, 4, 6, 10, dtype=torch.double), torch.tensor([812.5, 40.25, 500.0], dtype=torch.double)
        if name == "sd3":
            answer = pipe.transformer(sample, states, pooled, t).sample
        else:
            packed = pipe._pack_latents(sample, 3, 4, 6, 10)
            ids = pipe._prepare_latent_image_ids(3, 3, 5, "cpu", torch.double)
            answer = pipe.transformer(packed, states, pooled, t / 1000, ids, torch.zeros(states.shape[1], 3),
                                      guidance=torch.full([3], 2.5, dtype=torch.double)).sample
            answer = answer.view(3, 3, 5, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(3, 4, 6, 10)
        expected |= {f"{name}.sample": sample, f"{name}.timestep": t, f"{name}.out": answer}
        noise = torch.randn(2, 4, 6, 10, dtype=torch.double)
        given = noise if name == "sd3" else pipe._pack_latents(noise, 2, 4, 6, 10)
        ask = dict(prompt=PROMPTS[:2], height=12, width=20, num_inference_steps=4, guidance_scale=3.0, output_type="latent")
        latents = pipe(latents=given, **ask).images
        if name == "flux":
            latents = latents.view(2, 3, 5, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 6, 10)
        expected |= {f"{name}.noise": noise, f"{name}.latents": latents}
        if name == "sd3":
            pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
            expected["sd3.heun"] = pipe(latents=given, **ask).images
            pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)

    sigmas = torch.tensor([0.875, 0.25] * 2, dtype=torch.double)
    latents = torch.randn(4, 4, 6, 8).double()
    noise = torch.randn(2, 4, 6, 8).double().repeat(2, 1, 1, 1)

s = sigmas.view(-1, 1, 1, 1)
noisy, target = (1 - s) * latents + s * noise, noise - latents
states, pooled = of_sd3[0][:2].repeat(2, 1, 1), of_sd3[1][:2].repeat(2, 1)


def errors():
    return (sd3.transformer(noisy, states, pooled, 1000 * sigmas).sample - target).pow(2).mean(dim=[1, 2, 3])


with torch.no_grad():
    rw, rl = errors().chunk(2)
    base = {k: v.clone() for k, v in sd3.transformer.state_dict().items()}
    for name, p in sd3.transformer.named_parameters():
        p.mul_(17 / 16)
pw, pl = errors().chunk(2)
inside = -0.5 * BETA * ((pw - pl) - (rw - rl))
loss = -F.logsigmoid(inside).mean()
loss.backward()
for name, p in sd3.transformer.named_parameters():
    expected["grad." + name] = torch.zeros_like(p) if p.grad is None else p.grad
sd3.transformer.load_state_dict(base)

for name, pipe in [("sd3", sd3), ("flux", flux)]:
    pipe.to(torch.float16).save_pretrained(out / name)
    pipe.to(torch.float64)
save_file({k: v.float().contiguous() for k, v in expected.items()}, out / "expected.safetensors")
replay = {"0.latents": latents, "0.noise": noise, "0.sigmas": sigmas, "0.timesteps": 1000 * sigmas}
save_file({k: v.float().contiguous() for k, v in replay.items()}, out / "replay.safetensors",
          {"prompts": json.dumps(PROMPTS[:2])})
(out / "expected.json").write_text(json.dumps(
    {"prompts": PROMPTS, "beta": BETA, "loss": loss.item(), "z": inside.tolist()}, indent=1) + "\n")
