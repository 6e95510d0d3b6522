# How the values of mini.mk were chosen: BalancedDPO with other settings, on the prompts of `validation`, of which nothing is
# reported. Three training seeds each.
#
#   make reproduce X=tune                            all of them: an hour on two cores
#   make reproduce X=tune ROWS='BalancedDPO steps-300'
#
# RESULTS.md has what came out.

ROWS ?= BalancedDPO beta-300-rate-3e-5 rate-3e-5 beta-2000 steps-300 majority-only K-30

beta-300-rate-3e-5.train = --beta_dpo 300 --learning_rate 3e-5
rate-3e-5.train          = --learning_rate 3e-5
beta-2000.train          = --beta_dpo 2000
# Warmed up over a quarter and refreshed after half of the steps, like the 120.
steps-300.train     = --max_train_steps 300 --lr_warmup_steps 75
steps-300.reference = hard:150

# The reference that is never refreshed (majority-only) and the one refreshed twice as often (K-30) are there already.
include pipelines/ablations.mk

PROMPT_FLAGS = --only-set validation
