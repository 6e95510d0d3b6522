"""Names of SDXL's modules in kohya's files of adapters, as diffusers reads them: tests/fixtures/sample/kohya.json.

    python tests/oracle/kohya.py tests/fixtures/sample/sdxl >tests/fixtures/sample/kohya.json

Candidates of the names of SDXL's first code are made block by block; diffusers says which module each of them is."""

import itertools, json, re, sys, warnings

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers, _maybe_map_sgm_blocks_to_diffusers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

warnings.filterwarnings("ignore")
model = sys.argv[1]
with torch.device("meta"):
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model, subfolder="unet"))
    config = lambda part: CLIPTextConfig.from_pretrained(model, subfolder=part)
    encoders = {
        "text_encoder": ("lora_te1", CLIPTextModel(config("text_encoder"))),
        "text_encoder_2": ("lora_te2", CLIPTextModelWithProjection(config("text_encoder_2"))),
    }
weighted = lambda network: [name for name, module in network.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]


def of_diffusers(name):
    """The module that diffusers finds under a name in a file of kohya's scripts."""
    state = {f"{name}.lora_down.weight": torch.zeros(1, 1), f"{name}.lora_up.weight": torch.zeros(1, 1), f"{name}.alpha": torch.tensor(1.0)}
    try:
        state, _ = _convert_non_diffusers_lora_to_diffusers(_maybe_map_sgm_blocks_to_diffusers(state, unet.config))
    except (ValueError, IndexError):
        return None
    module = re.sub(r"\.lora\..*|\.lora_linear_layer\..*|_lora\..*", "", next(iter(state)))
    module = module.replace(".processor.", ".").replace(".to_out", ".to_out.0") if module.startswith("unet.") else module
    return re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", module) if module.startswith("text") else module


inside = {name.split(".", 4 - name.startswith("mid"))[-1].replace(".", "_") for name in weighted(unet) if "attentions" in name}
inside |= {"in_layers_2", "emb_layers_1", "out_layers_3", "skip_connection"}
blocks = [f"{side}_{i}_{j}" for side in ("input_blocks", "output_blocks") for i, j in itertools.product(range(12), range(3))]
blocks += [f"middle_block_{i}" for i in range(3)]
names = [f"{block}_{rest}" for block in blocks for rest in inside]
# diffusers does not look where these stand: at the ends of blocks.
ends = [unet.config.layers_per_block + n * (unet.config.layers_per_block + 1) for n in range(3)]
names += [name for end in ends for name in (f"input_blocks_{end + 1}_0_op", f"output_blocks_{end}_2_conv")]
names += ["input_blocks_0_0", "out_2", "time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2"]
wanted = {f"unet.{name}" for name in weighted(unet)}
found = {}
for name in (f"lora_unet_{name}" for name in names):
    module = of_diffusers(name)
    if module in wanted:
        assert module not in found, (module, name)
        found[module] = name
assert wanted == set(found), wanted - set(found)
for part, (prefix, encoder) in encoders.items():
    for module in weighted(encoder):
        # kohya's scripts have the names of transformers before version 5.
        older = module if module.startswith(("text_model.", "text_projection")) else f"text_model.{module}"
        name = f"{prefix}_{older.replace('.', '_')}"
        assert of_diffusers(name) == f"{part}.{older}", (name, of_diffusers(name), older)
        found[f"{part}.{older}"] = name
json.dump(dict(sorted(found.items())), sys.stdout, indent=1)
print()
