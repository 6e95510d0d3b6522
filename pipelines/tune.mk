# How the values of mini.mk were chosen: BalancedDPO with other settings, each with three training seeds, on the prompts of the set
# `validation`, for which no result is reported.
#
#   make reproduce X=tune                                  all rows: an hour on two cores
#   make reproduce X=tune ROWS='BalancedDPO steps-300'     some of them
#
# RESULTS.md has the results.

ROWS ?= BalancedDPO beta-300-rate-3e-5 rate-3e-5 beta-2000 steps-300 majority-only K-30

beta-300-rate-3e-5.train = --beta-dpo 300 --learning-rate 3e-5
rate-3e-5.train          = --learning-rate 3e-5
beta-2000.train          = --beta-dpo 2000
# As with 120 steps: a quarter is warm-up, and the reference is refreshed after half.
steps-300.train     = --max-train-steps 300 --lr-warmup-steps 75
steps-300.reference = hard:150

# Pairs on which the three metrics that read the text agree, with a higher rate and fewer steps. `make reproduce X=tune` leaves it out unless
# ROWS names it.
text-unanimous.labels    = text-unanimous
text-unanimous.rule      = unanimous --metrics hps,clip,pickscore
text-unanimous.train     = --max-train-steps 80 --lr-warmup-steps 20 --learning-rate 3e-5
text-unanimous.reference = hard:40

# ablations.mk defines two of the rows: majority-only never refreshes the reference, K-30 refreshes it twice as often.
include pipelines/ablations.mk

PROMPT_FLAGS = --only-set validation
