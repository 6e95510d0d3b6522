# The miniature experiment: a complete text-to-image world of 64 x 64 pixels that two CPU cores align in minutes.
# mini/README.md describes its files. The values were chosen on the prompt set `validation`, never on a reported set.

BASE    = pipelines/mini/base
MODELS  = pipelines/mini/scorers
PAIRS   = pipelines/mini/pairs.parquet
PROMPTS = pipelines/mini/prompts.parquet

# The paper's four metrics, in the paper's order.
METRICS     = hps,clip,pickscore,aesthetic
SCORE_FLAGS =
# A judge that never votes. mini/judge.py trained it on captions that no pair has.
HELD_OUT    = imagereward

# A pair with two votes each way abstains. This is the default of `vote`; it is set here because a sixth of the pairs tie.
VOTE_FLAGS = --ties abstain

# The two methods that the paper compares, from the same base: human labels with a frozen reference, and the majority of the
# metrics with a reference that is replaced by the policy after half of the steps.
POLICIES             = DiffusionDPO BalancedDPO
DiffusionDPO.labels    = human
DiffusionDPO.reference = frozen
BalancedDPO.labels   = majority
BalancedDPO.reference  = hard:$(call share,2)

RESOLUTION = 64
# The values below were chosen without mirrored images, for which `encode` would have to make a second set of latents.
AUGMENT    = none

# 120 steps of 32 pairs visit each labelled pair about twice. 300 steps move the scores a little further and take two and a half
# times as long.
STEPS        = 120
# The result is the same for every split of the 32 pairs.
BATCH        = 32
ACCUMULATION = 1
# A quarter of the steps, as in Diffusion-DPO (500 of 2,000).
WARMUP       = $(call share,4)
# The pairs stay the same while the policy moves, and half of their images are from another model, so the policy must stay close to
# its reference: with beta 300 and a rate of 3e-5 the images become pale and lose parts (`make reproduce X=tune`).
LEARNING_RATE = 1e-5
BETA          = 5000
TRAIN_FLAGS   =
SEED          = 0
# A killed run loses at most a quarter of the training.
CHECKPOINT_STEPS = 30

# The three reported sets; `validation` is for tuning.
PROMPT_FLAGS = --only-set seen,unseen-pair,unseen-name
# Five images per prompt, as in the paper.
IMAGES       = 5
# The values above were chosen with these settings. The images of the pairs were drawn with guidance 2, 4 and 6.
SAMPLE_STEPS = 20
GUIDANCE     = 4
SAMPLE_FLAGS =

NOTE = hps, clip, pickscore, aesthetic and imagereward are stand-ins here: small models in the published layouts, trained by this project on its miniature world.

# `make protocol` judges the two policies, or UNETS, by the scorers that are here.
PROTOCOL_METRICS     = $(HELD_OUT),$(METRICS)
PROTOCOL_SCORE_FLAGS =
PROTOCOL_STEPS       = $(SAMPLE_STEPS)
PROTOCOL_GUIDANCE    = $(GUIDANCE)
