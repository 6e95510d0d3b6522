# The experiment of sd15.mk with Stable Diffusion 3.5 medium, as LoRA adapters.
#
#   make -n reproduce X=sd35
#
# Fetch in addition to sd15.mk's data: DATA/sd35, 16 GB: hf download stabilityai/stable-diffusion-3.5-medium --include 'transformer/*'
# 'text_encoder/*' 'text_encoder_[23]/*' 'tokenizer*/*' 'vae/*' 'scheduler/*' model_index.json (a licence must be accepted there first; the
# other files, of 20 GB, are the same weights once more).
# Without text_encoder_3 and tokenizer_3 (T5, 9.5 GB) it works too, with prompts of 77 tokens.
#
# Disk space that a run needs in addition: latents of 16 channels, 4 times as large as SD1.5's of the same size: 524 GB; captions of
# 333 tokens of 4,096 numbers, 2.7 MB each in half precision (59,000 distinct ones: 160 GB); the last checkpoint of two policies with
# the adapters added to the base's weights: 20 GB.
# Cost, on one A100, estimated from the work and not measured: an image of 512 pixels takes 2.4 TFLOP per prediction (1,024 tokens of
# the image and 333 of the text in 24 blocks). A pair takes 8 predictions: two images, each once by the reference, twice by the policy
# and once backwards through frozen weights. At 100 TFLOP per second 0.2 s, so that 2,000 steps of 64 pairs take 7 hours per policy;
# RESULTS.md says how far from such rates this build is on a GPU.
# Memory: the frozen weights are f32, 10 GB, once for policy and reference; gradients and moments are those of the adapters. Measured on a
# CPU with random weights, rank 64 and one pair: 11.5 GiB at most, and 140 s per step on two cores.
#
# Sources of the values as in sd15.mk; [model]: as the model is published; [flow-grpo]: Flow-GRPO's settings for this model
# (arXiv 2505.05470; scripts/train_sd3.py of its code); [diffusers]: diffusers' script for DPO with adapters.

include pipelines/sd15.mk

BASE = $(DATA)/sd35
DENOISER = transformer
# [model] T5 and the transformer were published in bf16; T5 overflows in f16.
DTYPE = bf16
# [ours] Half of the model's 1,024 pixels: a quarter of the cost.
RESOLUTION   = 512
SAMPLE_FLAGS = --height 512 --width 512
# [flow-grpo] Rank 32, alpha 64, all projections of the joint attention. [ours] A constant weight, which Flow-DPO's authors found better
# than (1 - sigma)^2 (arXiv 2501.13918).
TRAIN_FLAGS  = --lora-rank 32 --lora-alpha 64 --merge --flow-weight constant \
    --lora-targets attn.to_q,attn.to_k,attn.to_v,attn.to_out.0,attn.add_q_proj,attn.add_k_proj,attn.add_v_proj,attn.to_add_out
# [diffusers] The learning rate of adapters.
LEARNING_RATE = 1e-5
# [ours] 64 pairs per step, with fewer at a time, so that they fit into memory.
BATCH        = 4
ACCUMULATION = 16
# [model] 40 steps and guidance 4.5, as its card says, by Euler along the flow.
SCHEDULER    = flow
SAMPLE_STEPS = 40
GUIDANCE     = 4.5

# For `make protocol`: sd15.mk's list is of another model, so the policies of this experiment are judged.
UNETS = $(foreach p,$(POLICIES),$p=$(RUNS)/$(X)/$p)
