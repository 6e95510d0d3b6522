# The experiment of sd15.mk with Stable Diffusion 2.1 (the paper's second version adds it; its settings are not public).
#
#   make -n reproduce X=sd21         or make rehearse X=sd21, with random weights
#
# Fetch in addition to sd15.mk's data: DATA/sd21, 5.2 GB: hf download stabilityai/stable-diffusion-2-1 (or a mirror).
#
# Disk space that a run needs in addition: latents at 768 pixels, 2.25 times as large as those of SD1.5: 295 GB; 23,640 images of about
# 0.9 MB: 21 GB; the last two checkpoints of two policies (866 million weights in f32, two moments, and the reference once it has been
# refreshed): 49 GB.
# Cost, on one A100: a step, an image and an encoding take at least 2.25 times as long as with SD1.5 (the pixels; attention takes
# more). From sd15.mk's and CLUSTER.md's hours, estimated in the same way: 27 hours per policy, 14 for encoding, 12 for sampling; 3 for
# scoring as before. About 83 hours for two policies; divide by the number of GPUs.
#
# Sources of the values as in sd15.mk; [model]: as the model is published.

include pipelines/sd15.mk

BASE = $(DATA)/sd21
# [model] 768 pixels; its own scheduler_config.json says that it predicts v.
RESOLUTION = 768
# [ours] 64 pairs per step, with fewer at a time, so that they fit into memory.
BATCH        = 2
ACCUMULATION = 32
# [model] The class that its scheduler_config.json names.
SCHEDULER    = ddim

# For `make protocol`: sd15.mk's list is of another model, so the policies of this experiment are judged.
UNETS = $(foreach p,$(POLICIES),$p=$(RUNS)/$(X)/$p)
