# The miniature experiment: a whole text-to-image world of 64 x 64 pixels that two CPU cores align in minutes.
# mini/README.md says what its files are. The values were found on the prompt set `validation`, never on a reported one.

BASE    = pipelines/mini/base
MODELS  = pipelines/mini/scorers
PAIRS   = pipelines/mini/pairs.parquet
PROMPTS = pipelines/mini/prompts.parquet

# The paper's four metrics, in the paper's order.
METRICS     = hps,clip,pickscore,aesthetic
SCORE_FLAGS =

# Two votes each way say nothing: such a pair abstains (the default of `vote`, named because a sixth of the pairs tie).
VOTE_FLAGS = --ties abstain

# The two methods that the paper compares, from the same base: people's labels with a reference that stays, and the majority
# of the metrics with a reference that becomes the policy after half of the steps.
POLICIES             = DiffusionDPO BalancedDPO
DiffusionDPO.labels    = human
DiffusionDPO.reference = frozen
BalancedDPO.labels   = majority
BalancedDPO.reference  = hard:60

RESOLUTION = 64
# The values below were found without mirrored images, of which `encode` would have to make a second set of latents.
AUGMENT    = none

# 120 steps of 32 pairs: about two visits to each pair that has a label. 300 steps move the scores a little further, at two and
# a half times the price.
STEPS        = 120
# Any split of the 32 gives the same.
BATCH        = 32
ACCUMULATION = 1
# A quarter of the steps, as Diffusion-DPO (500 of 2,000).
WARMUP       = 30
# The pairs stay as they are while the policy moves, and half of their images are another model's, so the leash must be short:
# with beta 300 and a rate of 3e-5 the images pale and lose parts (`make reproduce X=tune`).
LEARNING_RATE = 1e-5
BETA          = 5000
TRAIN_FLAGS   =
SEED          = 0
# A killed run loses at most a quarter of the training.
CHECKPOINT_STEPS = 30

# The three reported sets; `validation` is for tuning.
PROMPT_FLAGS = --only-set seen,unseen-pair,unseen-name
# Five images a prompt, as in the paper.
IMAGES       = 5
# How the values above were found; the images of the pairs were drawn with guidance 2, 4 and 6.
SAMPLE_STEPS = 20
GUIDANCE     = 4
SAMPLE_FLAGS =

NOTE = hps, clip, pickscore and aesthetic are stand-ins here: small models in the published layouts, trained by this project on its miniature world.
