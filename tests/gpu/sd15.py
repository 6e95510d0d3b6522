"""Stable Diffusion 1.5's UNet as files of zeros, which take no room on a disk: names and shapes as published, no weights."""
import json
import os
from pathlib import Path

# What the fourth word of a case's name asks of train.
FLAGS = {"kept": ["--gradient-checkpointing=off"], "moments": ["--moments", "bf16"]}

CHANNELS, CONTEXT, TIME = [320, 640, 1280, 1280], 768, 1280


def case_of(name):
    """Pixels, pairs, type and flags of a case of budgets.json, as sd15-512x4-bf16-kept."""
    _, sizes, dtype, *rest = name.split("-")
    pixels, pairs = map(int, sizes.split("x"))
    return pixels, pairs, dtype, [flag for word in rest for flag in FLAGS[word]]


def unet():
    """Shapes by the names that diffusers gives them."""
    shapes = {}

    def layer(name, *weight, bias=True):
        shapes[f"{name}.weight"] = list(weight)
        if bias:
            shapes[f"{name}.bias"] = [weight[0]]

    def resnet(name, c, o):
        layer(f"{name}.norm1", c)
        layer(f"{name}.conv1", o, c, 3, 3)
        layer(f"{name}.time_emb_proj", o, TIME)
        layer(f"{name}.norm2", o)
        layer(f"{name}.conv2", o, o, 3, 3)
        if c != o:
            layer(f"{name}.conv_shortcut", o, c, 1, 1)

    def transformer(name, c):
        block = f"{name}.transformer_blocks.0"
        layer(f"{name}.norm", c)
        layer(f"{name}.proj_in", c, c, 1, 1)
        for i, context in enumerate([c, CONTEXT]):
            for which, width in dict(to_q=c, to_k=context, to_v=context).items():
                layer(f"{block}.attn{i + 1}.{which}", c, width, bias=False)
            layer(f"{block}.attn{i + 1}.to_out.0", c, c)
        for i in range(3):
            layer(f"{block}.norm{i + 1}", c)
        layer(f"{block}.ff.net.0.proj", 8 * c, c)
        layer(f"{block}.ff.net.2", c, 4 * c)
        layer(f"{name}.proj_out", c, c, 1, 1)

    layer("conv_in", CHANNELS[0], 4, 3, 3)
    layer("time_embedding.linear_1", TIME, CHANNELS[0])
    layer("time_embedding.linear_2", TIME, TIME)
    skips, width = [CHANNELS[0]], CHANNELS[0]
    for i, c in enumerate(CHANNELS):
        for j in range(2):
            resnet(f"down_blocks.{i}.resnets.{j}", width, c)
            width = c
            if i < 3:
                transformer(f"down_blocks.{i}.attentions.{j}", c)
            skips.append(c)
        if i < 3:
            layer(f"down_blocks.{i}.downsamplers.0.conv", c, c, 3, 3)
            skips.append(c)
    for j in range(2):
        resnet(f"mid_block.resnets.{j}", width, width)
    transformer("mid_block.attentions.0", width)
    for i, c in enumerate(reversed(CHANNELS)):
        for j in range(3):
            resnet(f"up_blocks.{i}.resnets.{j}", width + skips.pop(), c)
            width = c
            if i > 0:
                transformer(f"up_blocks.{i}.attentions.{j}", c)
        if i < 3:
            layer(f"up_blocks.{i}.upsamplers.0.conv", c, c, 3, 3)
    layer("conv_norm_out", width)
    layer("conv_out", 4, width, 3, 3)
    return shapes


def text(width=768, layers=1):
    shapes = {"embeddings.token_embedding.weight": [49408, width], "embeddings.position_embedding.weight": [77, width]}
    names = ["final_layer_norm"] + [f"encoder.layers.{i}.layer_norm{j}" for i in range(layers) for j in (1, 2)]
    shapes |= {f"{name}.{which}": [width] for name in names for which in ("weight", "bias")}
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        maps = {f"self_attn.{which}_proj": (width, width) for which in "qkv"} | {"self_attn.out_proj": (width, width)}
        for name, (o, c) in (maps | {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}).items():
            shapes |= {f"{layer}.{name}.weight": [o, c], f"{layer}.{name}.bias": [o]}
    return {f"text_model.{name}": shape for name, shape in shapes.items()}


def zeros(path, tensors, metadata=None):
    """A safetensors file of zeros. `tensors`: shapes by name, f32, or (type, shape)."""
    sizes, header, end = {"F32": 4, "I64": 8}, {"__metadata__": metadata} if metadata else {}, 0
    for name, shape in tensors.items():
        dtype, shape = shape if isinstance(shape, tuple) else ("F32", shape)
        begin, end = end, end + sizes[dtype] * int_product(shape)
        header[name] = dict(dtype=dtype, shape=shape, data_offsets=[begin, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def int_product(shape):
    n = 1
    for size in shape:
        n *= size
    return n


def make(base):
    """The base folder."""
    folder = Path(__file__).resolve().parents[1] / "fixtures/oracle/base/scheduler"
    shapes = unet()
    assert len(shapes) == 686 and sum(map(int_product, shapes.values())) == 859_520_964
    configs = {
        "unet": dict(sample_size=64, block_out_channels=CHANNELS, layers_per_block=2, cross_attention_dim=CONTEXT, attention_head_dim=8, norm_num_groups=32,
                     down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3),
        "text_encoder": dict(architectures=["CLIPTextModel"], model_type="clip_text_model", vocab_size=49408, hidden_size=768, intermediate_size=3072,
                             num_hidden_layers=1, num_attention_heads=12, max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407),
        "vae": dict(block_out_channels=[128, 256, 512, 512], latent_channels=4),
    }
    zeros(base / "unet/diffusion_pytorch_model.safetensors", shapes)
    zeros(base / "text_encoder/model.safetensors", text())
    for name, config in configs.items():
        (base / name).mkdir(exist_ok=True)
        (base / name / "config.json").write_text(json.dumps(config))
    (base / "scheduler").mkdir(exist_ok=True)
    for file in os.listdir(folder):
        (base / "scheduler" / file).write_bytes((folder / file).read_bytes())
    (base / "tokenizer").mkdir(exist_ok=True)  # none: CLIP's own


def replay(path, pixels, pairs, steps):
    """The inputs of so many steps: latents and noise of zeros, at timestep 0."""
    tensors, side = {}, pixels // 8
    for i in range(steps):
        tensors |= {f"{i}.latents": [2 * pairs, 4, side, side], f"{i}.noise": [2 * pairs, 4, side, side], f"{i}.timesteps": ("I64", [2 * pairs])}
    zeros(path, tensors, {"prompts": json.dumps(["a red bicycle in front of a house"] * pairs)})
