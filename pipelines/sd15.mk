# The paper's experiment with Stable Diffusion 1.5 on Pick-a-Pic v2, for a GPU (or many: CLUSTER.md).
#
#   make -n reproduce X=sd15        the plan
#   make reproduce X=sd15           all of it, into runs/sd15/
#
# Needed first, in DATA (default: data/):
#   pickapic_v2/        335 GB   hf download yuvalkirstain/pickapic_v2 --repo-type dataset --include 'data/train-*'
#   prompts/            small    PartiPrompts.tsv, hpdv2.json (HPD v2's test prompts), pickapic.txt (Pick-a-Pic's test captions)
#   models/hps/         2.0 GB   hf download xswu/HPSv2 HPS_v2_compressed.pt
#   models/clip/        3.9 GB   hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K open_clip_pytorch_model.bin open_clip_config.json
#   models/pickscore/   3.9 GB   hf download yuvalkirstain/PickScore_v1, and the tokenizer of the CLIP above
#   models/aesthetic/   1.7 GB   hf download openai/clip-vit-large-patch14, and sac+logos+ava1-l14-linearMSE.pth of LAION's predictor
#   models/safe/        0.3 GB   hf download michellejieli/inappropriate_text_classifier
#   sd15/               4.3 GB   hf download stable-diffusion-v1-5/stable-diffusion-v1-5
# (each with `--local-dir DATA/...`).
#
# Disk that a run needs, beside these: latents of a million distinct images and of their mirror images, 4 x 64 x 64 means and
# logvars in half precision, 131 GB; three sets of images, 0.4 MB each, 1,576 prompts x 5 x 3: 10 GB; the last checkpoint of two policies with moments and reference, 28 GB.
# Cost: 2 x 2,000 steps x 64 pairs. Diffusion-DPO's authors report 2,000 steps of 2,048 pairs in about 24 hours on 16 A100, which is
# 3 pairs a second on one; at that rate a policy takes 12 hours on one A100. Scoring and encoding are paid once.
#
# Sources of the values: [paper] BalancedDPO; [dpo] Diffusion-DPO's paper, [code] its published program. The paper's own learning
# rate, beta, steps, batch and period are not public: what stands in their place is marked [ours], and METHOD.md says why.

DATA   ?= data
DEVICE ?= cuda
# [ours] Half precision; training in bf16, which has f32's range: in f16 small gradients would be 0.
DTYPE       ?= f16
TRAIN_DTYPE ?= bf16
# What the programs are built with; `nccl` where a training is many processes.
FEATURES ?= cuda

BASE    = $(DATA)/sd15
MODELS  = $(DATA)/models
PAIRS   = $(DATA)/pickapic_v2/data
# [paper] Pick-a-Pic, PartiPrompts and HPD v2; each file is a set of its own name.
PROMPTS = $(DATA)/prompts/pickapic.txt $(DATA)/prompts/PartiPrompts.tsv $(DATA)/prompts/hpdv2.json

# [paper] Four metrics; [code] HPS is version 2.0.
METRICS     = hps,clip,pickscore,aesthetic
SCORE_FLAGS = --hps-version 2.0
# [ours] The paper is silent on ties, which four voters make in 15 to 35 % of pairs.
VOTE_FLAGS  = --ties abstain

POLICIES             = DiffusionDPO BalancedDPO
DiffusionDPO.labels    = human
DiffusionDPO.reference = frozen
BalancedDPO.labels   = majority
# [ours] A sixteenth of the steps. The paper says "frequent" and "periodic".
BalancedDPO.reference  = hard:125

# [dpo] 512 pixels, each image of a pair mirrored by itself.
RESOLUTION = 512
AUGMENT    = independent-flip

# [dpo] 2,000 steps of which 500 warm up; [code] beta 5,000, a learning rate of 1e-8 for each pair of the batch.
# [ours] 64 pairs a step: the paper's "32x fewer compute" than Diffusion-DPO's 2,048.
STEPS         = 2000
WARMUP        = 500
BATCH         = 4
ACCUMULATION  = 16
LEARNING_RATE = 6.4e-7
BETA          = 5000
SEED          = 0
TRAIN_FLAGS   =
CHECKPOINT_STEPS = 125

# [paper] A safe subset of the prompts, by the classifier of its reference 29; [ours] its threshold.
PROMPT_FLAGS = --safe $(DATA)/models/safe --threshold 0.5
# [paper] Five images a prompt; [dpo] 50 steps, guidance 7.5; PNDM is the scheduler that SD1.5 is published with.
IMAGES       = 5
SCHEDULER    = pndm
SAMPLE_STEPS = 50
GUIDANCE     = 7.5
SAMPLE_FLAGS =

NOTE =
