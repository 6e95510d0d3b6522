# The experiment of sd15.mk with Stable Diffusion XL (the paper's Table II).
#
#   make -n reproduce X=sdxl         or make rehearse X=sdxl, with random weights
#
# Fetch in addition to sd15.mk's data: DATA/sdxl, 13.9 GB: hf download stabilityai/stable-diffusion-xl-base-1.0.
#
# Disk space that a run needs in addition: latents at 1,024 pixels, 4 times as large as those of SD1.5: 524 GB; 23,640 images of about
# 1.6 MB: 38 GB; the last two checkpoints of two policies (2.6 billion weights in f32, Adafactor's moments, which are small, and the
# reference once it has been refreshed): 62 GB.
# Cost, on one A100: Diffusion-DPO's authors report about 30 hours for 200 steps of 2,048 pairs on 16, 0.24 pairs per second on one; at
# that rate a policy of 1,000 steps of 64 pairs takes 74 hours. Encoding takes 4 times SD1.5's 6 hours: 24; sampling, if an image takes
# longer in the proportion of the pairs (12 to 1), 60; 3 for scoring as before. About 235 hours for two policies, estimated as in
# CLUSTER.md; divide by the number of GPUs.
#
# Sources of the values as in sd15.mk; [model]: as the model is published.

include pipelines/sd15.mk

BASE = $(DATA)/sdxl
# [dpo] 1,024 pixels.
RESOLUTION = 1024
# [dpo] beta 5,000, as in sd15.mk; Adafactor, because AdamW's moments of 2.6 billion parameters do not fit beside them; 200 steps of
# warm-up. [ours] 1,000 steps of 64 pairs, the fewest of [dpo]'s runs on labels of scorers.
STEPS        = 1000
WARMUP       = 200
TRAIN_FLAGS  = --use_adafactor --gradient_checkpointing
# [ours] 64 pairs per step, one at a time, so that they fit into memory.
BATCH        = 1
ACCUMULATION = 64
# [dpo] guidance 5. [model] Euler is the scheduler that SDXL is published with.
GUIDANCE  = 5
SCHEDULER = euler

# For `make protocol`, as in sd15.mk: mhdang/dpo-sdxl-text2image-v1, whynot0128/Linear-DPO-SDXL, JaydenLu666/SmPO-SDXL, mapo-t2i/mapo-beta.
UNETS = $(foreach n,dpo-xl linear-dpo-xl smpo-xl mapo,$n=$(DATA)/unets/$n)
