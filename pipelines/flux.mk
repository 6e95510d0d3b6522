# The experiment of sd35.mk with FLUX.1 [dev], as LoRA adapters.
#
#   make -n reproduce X=flux
#
# Fetch in addition to sd15.mk's data: DATA/flux, 34 GB: hf download black-forest-labs/FLUX.1-dev --include 'transformer/*'
# 'text_encoder*/*' 'tokenizer*/*' 'vae/*' 'scheduler/*' model_index.json (a licence must be accepted there first).
#
# Disk space that a run needs in addition: latents as in sd35.mk; captions of 512 tokens of 4,096 numbers, 4.2 MB each in half precision
# (59,000 distinct ones: 250 GB); the last checkpoint of two policies with the adapters added to the base's weights: 95 GB.
# Cost, on one GPU of 80 GB, estimated from the work and not measured: an image of 512 pixels takes 21 TFLOP per prediction (1,536 tokens
# in 19 joint and 38 single blocks of 12 billion weights), a pair 8 predictions as in sd35.mk: at 100 TFLOP per second 1.7 s, 60 hours per
# policy of 2,000 steps of 64 pairs.
# Memory: the frozen weights are f32, 48 GB, once for policy and reference.
#
# Sources of the values as in sd35.mk.

include pipelines/sd35.mk

BASE = $(DATA)/flux
# [diffusers] Rank 16 and alpha 16 as for DreamBooth, on the projections of the joint attention; guidance 3.5 is an input of the model.
TRAIN_FLAGS  = --lora-rank 16 --merge --flow-weight constant --guidance-scale 3.5 \
    --lora-targets attn.to_q,attn.to_k,attn.to_v,attn.to_out.0,attn.add_q_proj,attn.add_k_proj,attn.add_v_proj,attn.to_add_out
# [ours] 64 pairs per step, one at a time, so that they fit into memory.
BATCH        = 1
ACCUMULATION = 64
# [diffusers] 28 steps and guidance 3.5, the defaults of its pipeline; the model's card has 50 steps.
SAMPLE_STEPS = 28
GUIDANCE     = 3.5
