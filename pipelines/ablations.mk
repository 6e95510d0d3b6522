# The paper's ablations in the mini world, and ours. One row is one change from BalancedDPO or from DiffusionDPO; every row has the
# same steps, batch, learning rate and beta, and three training seeds.
#
#   make ablations                          all rows: hours on two cores; a killed run goes on with the same command
#   make ablations ROWS='vote-hps K-30'     some of them
#
# mini.mk's values hold where nothing is said here. RESULTS.md has what came out.

include pipelines/mini.mk

SEEDS ?= 0 1 2
ROWS  ?= $(table-3) $(table-4) $(ours)

# Table III: whose vote is the label. The reference is refreshed in all of them; the paper does not say.
table-3 := vote-hps vote-clip vote-pickscore vote-aesthetic vote-random vote-sum vote-zsum BalancedDPO
$(foreach m,hps clip pickscore aesthetic,$(eval vote-$m.labels = single-$m))
vote-random.labels = random
vote-sum.labels    = sum
vote-zsum.labels   = zsum

# Table IV: refresh and several metrics, each with and without the other. Without both it is DiffusionDPO.
table-4 := DiffusionDPO refresh-only majority-only
DiffusionDPO.labels     = human
DiffusionDPO.reference  = frozen
refresh-only.labels     = human
majority-only.reference = frozen

# Ours: more of a vote than its sign, a guard for the winner, and how often the reference follows.
ours := soft weighted quorum-4 guard guard-0.5 K-30 K-15 K-8 ema
soft.labels     = soft
weighted.labels = dawid-skene
# All four agree; three are the majority already.
quorum-4.labels = quorum-4
guard.train     = --guard sdpo
guard-0.5.train = --guard sdpo:0.5
$(foreach k,30 15 8,$(eval K-$k.reference = hard:$k))
# The mean age of what the average holds is 60 steps, BalancedDPO's period.
ema.reference   = ema:0.0167

dawid-skene.rule = weighted --fit dawid-skene

# A policy is a row and a seed; what a row does not say is as in BalancedDPO. DiffusionDPO comes first, so that all are compared
# with it.
order    := $(filter DiffusionDPO,$(ROWS)) $(filter-out DiffusionDPO,$(ROWS))
POLICIES := $(foreach row,$(order),$(foreach s,$(SEEDS),$(row)-$s))
$(foreach row,$(ROWS),$(foreach s,$(SEEDS),\
    $(eval $(row)-$s.labels    := $(call value_or,$(row).labels,majority))\
    $(eval $(row)-$s.reference := $(call value_or,$(row).reference,hard:60))\
    $(eval $(row)-$s.train     := $(call value_or,$(row).train,))\
    $(eval $(row)-$s.seed      := $s)\
    $(eval $(row)-$s.name      := $(row))))

# On the page: the two methods of the paper by their first seed; whatever there is where they are left out.
SHOWN = $(or $(filter $(foreach row,DiffusionDPO BalancedDPO,$(row)-$(firstword $(SEEDS))),$(POLICIES)),$(firstword $(POLICIES)))

# Each row against the two that every row is asked about, its seeds together.
WINRATE_FLAGS = --seeds --against base$(if $(filter DiffusionDPO,$(ROWS)),$(if $(filter-out DiffusionDPO,$(ROWS)),$(comma)DiffusionDPO))
comma := ,

# Prompts that no pair shows. Half the steps of a sampler of second order: its images score within 0.1 sd of those of mini.mk's
# (`sample --scheduler dpmpp --steps 10` beside `ddim`, 20, on `validation`), and each row takes two thirds of the time.
PROMPT_FLAGS = --only-set unseen-pair,unseen-name
SCHEDULER    = dpmpp
SAMPLE_STEPS = 10
