# The paper's experiment with Stable Diffusion 1.5 on Pick-a-Pic v2, for one GPU, or for many (CLUSTER.md).
#
#   make -n reproduce X=sd15        print the commands
#   make rehearse X=sd15            run all of it at full size on a few rows, with random weights: what it takes (rehearse.mk)
#   make reproduce X=sd15           run all of it, into runs/sd15/
#
# Fetch first, into DATA (default: data/):
#   pickapic_v2/        335 GB   hf download liuhuohuo2/pick-a-pic-v2 --repo-type dataset --include 'data/train-*'
#                                (a copy of yuvalkirstain/pickapic_v2, which is reported gone since 2025)
#   prompts/            small    PartiPrompts.tsv, hpdv2.json (HPD v2's test prompts), pickapic.txt (Pick-a-Pic's test captions)
#   models/hps/         2.0 GB   hf download xswu/HPSv2 HPS_v2_compressed.pt
#   models/clip/        3.9 GB   hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K open_clip_pytorch_model.bin open_clip_config.json
#   models/pickscore/   3.9 GB   hf download yuvalkirstain/PickScore_v1, and the tokenizer of the CLIP above
#   models/aesthetic/   1.7 GB   hf download openai/clip-vit-large-patch14, and sac+logos+ava1-l14-linearMSE.pth of LAION's predictor
#   models/safe/        0.3 GB   hf download michellejieli/inappropriate_text_classifier
#   sd15/               4.3 GB   hf download stable-diffusion-v1-5/stable-diffusion-v1-5
# and for `make protocol` (protocol.mk) alone:
#   models/imagereward/ 1.8 GB   hf download RE-N-Y/ImageReward model.safetensors
#   models/mps/         4.4 GB   hf download RE-N-Y/mpsv1 model.safetensors
#   unets/              3.4 GB each: one folder per model of UNETS below, as DATA/unets/dpo: hf download mhdang/dpo-sd1.5-text2image-v1
# Add `--local-dir DATA/...` to each command.
#
# Disk space that a run needs in addition: 131 GB for the latents of a million distinct images and of their mirror images (means and
# logvars of 4 x 64 x 64 in half precision); 10 GB for three sets of images (0.4 MB each, 1,576 prompts x 5 x 3); 48 GB for two
# policies: of each the last checkpoint and the one before it, with moments (10 GB), and with the refreshed reference (14 GB).
# Cost: 2 x 2,000 steps x 64 pairs. Diffusion-DPO's authors report 2,000 steps of 2,048 pairs in about 24 hours on 16 A100s, which is
# 3 pairs per second on one. At that rate a policy takes 12 hours on one A100. Scoring and encoding are done once.
#
# Sources of the values: [paper] BalancedDPO; [dpo] Diffusion-DPO's paper, [code] its published program. The paper's own learning
# rate, beta, steps, batch and period are not public: our choices are marked [ours], and METHOD.md has the reasons.

DATA   ?= data
DEVICE ?= cuda
# [ours] Half precision; training in bf16, which has f32's range: in f16 small gradients would be 0.
DTYPE       ?= f16
TRAIN_DTYPE ?= bf16
# Features that the programs are built with; use `nccl` to train with several processes.
FEATURES ?= cuda

BASE    = $(DATA)/sd15
MODELS  = $(DATA)/models
PAIRS   = $(DATA)/pickapic_v2/data
# [paper] Pick-a-Pic, PartiPrompts and HPD v2; each file is a set of its own name.
PROMPTS = $(DATA)/prompts/pickapic.txt $(DATA)/prompts/PartiPrompts.tsv $(DATA)/prompts/hpdv2.json

# [paper] Four metrics; [code] HPS is version 2.0.
METRICS     = hps,clip,pickscore,aesthetic
SCORE_FLAGS = --hps-version 2.0
# [ours] The paper does not mention ties, which four voters produce in 15 to 35 % of the pairs.
VOTE_FLAGS  = --ties abstain

POLICIES             = DiffusionDPO BalancedDPO
DiffusionDPO.labels    = human
DiffusionDPO.reference = frozen
BalancedDPO.labels   = majority
# [ours] A sixteenth of the steps. The paper says "frequent" and "periodic".
BalancedDPO.reference  = hard:$(call share,16)

# [dpo] 512 pixels; each image of a pair is mirrored independently.
RESOLUTION = 512
AUGMENT    = independent-flip

# [dpo] 2,000 steps of which 500 warm up; [code] beta 5,000, a learning rate of 1e-8 per pair of the batch.
# [ours] 64 pairs per step: the paper's "32x fewer compute" than Diffusion-DPO's 2,048.
STEPS         = 2000
WARMUP        = $(call share,4)
BATCH         = 4
ACCUMULATION  = 16
LEARNING_RATE = 6.4e-7
BETA          = 5000
SEED          = 0
TRAIN_FLAGS   =
CHECKPOINT_STEPS = 125

# [paper] A safe subset of the prompts, by the classifier of its reference 29; [ours] its threshold.
PROMPT_FLAGS = --safe $(DATA)/models/safe --threshold 0.5
# [paper] Five images per prompt; [dpo] 50 steps, guidance 7.5; PNDM is the scheduler that SD1.5 is published with.
IMAGES       = 5
SCHEDULER    = pndm
SAMPLE_STEPS = 50
GUIDANCE     = 7.5
SAMPLE_FLAGS =

# Models that others trained from SD1.5 and published, as NAME=FOLDER, for `make protocol`: mhdang/dpo-sd1.5-text2image-v1,
# jacklishufan/diffusion-kto, whynot0128/Linear-DPO, JaydenLu666/SmPO-SD1.5, ylwu/diffusion-dro-sd1.5.
UNETS = $(foreach n,dpo kto linear-dpo smpo dro,$n=$(DATA)/unets/$n)

NOTE =
