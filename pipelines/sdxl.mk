# The experiment of sd15.mk with Stable Diffusion XL (the paper's Table II).
#
#   make -n reproduce X=sdxl
#
# Needed beside sd15.mk's data: DATA/sdxl, 13.9 GB: hf download stabilityai/stable-diffusion-xl-base-1.0. Latents at 1,024 pixels
# are 4 times as large as those of SD1.5 (524 GB). Cost: Diffusion-DPO's authors report about 30 hours for 200 steps of 2,048 pairs on
# 16 A100, 0.24 pairs a second on one; at that rate a policy takes 74 hours on one A100.

include pipelines/sd15.mk

BASE = $(DATA)/sdxl
RESOLUTION = 1024
# [dpo] beta 5,000; Adafactor, because AdamW's moments of 2.6 billion parameters do not fit beside them; 200 steps of warm-up
# of 1,000.
STEPS        = 1000
WARMUP       = 200
TRAIN_FLAGS  = --use_adafactor --gradient_checkpointing
BATCH        = 1
ACCUMULATION = 64
BalancedDPO.reference = hard:62
# [dpo] guidance 5; Euler is the scheduler that SDXL is published with.
GUIDANCE  = 5
SCHEDULER = euler
