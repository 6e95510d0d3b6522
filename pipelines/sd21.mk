# The experiment of sd15.mk with Stable Diffusion 2.1 (the paper's second version adds it; its settings are not public).
#
#   make -n reproduce X=sd21
#
# Needed beside sd15.mk's data: DATA/sd21, 5.2 GB: hf download stabilityai/stable-diffusion-2-1 (or a mirror). Latents at 768 pixels
# are 2.25 times as large as those of SD1.5 (295 GB), and a step takes about as much longer.

include pipelines/sd15.mk

BASE = $(DATA)/sd21
# What the model was made for; its own scheduler_config.json says that it predicts v.
RESOLUTION = 768
# [ours] Fewer pairs fit at once.
BATCH        = 2
ACCUMULATION = 32
SCHEDULER    = ddim
