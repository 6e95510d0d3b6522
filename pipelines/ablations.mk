# The paper's ablations in the mini world, and ours. A row is one change of BalancedDPO or of DiffusionDPO. All rows have the same
# steps, batch, learning rate and beta, and three training seeds.
#
#   make ablations                          all rows: hours on two cores; a killed run resumes with the same command
#   make ablations ROWS='vote-hps K-30'     some of them
#
# Values that are not set here are those of mini.mk. RESULTS.md has the results.

include pipelines/mini.mk

SEEDS ?= 0 1 2
ROWS  ?= $(table-3) $(table-4) $(ours)

# Table III: whose vote is the label. All rows refresh the reference; the paper does not say whether its rows do.
table-3 := vote-hps vote-clip vote-pickscore vote-aesthetic vote-random vote-sum vote-zsum BalancedDPO
$(foreach m,hps clip pickscore aesthetic,$(eval vote-$m.labels = single-$m))
vote-random.labels = random
vote-sum.labels    = sum
vote-zsum.labels   = zsum

# Table IV: refreshing and several metrics, each with and without the other. Neither is DiffusionDPO.
table-4 := DiffusionDPO refresh-only majority-only
DiffusionDPO.labels     = human
DiffusionDPO.reference  = frozen
refresh-only.labels     = human
majority-only.reference = frozen

# Ours: more of the vote than its sign, a guard for the winner, and other periods of the refresh.
ours := soft weighted quorum-4 guard guard-0.5 K-30 K-15 K-8 ema
soft.labels     = soft
weighted.labels = dawid-skene
# All four metrics agree. Three of four would be the majority.
quorum-4.labels = quorum-4
guard.train     = --guard sdpo
guard-0.5.train = --guard sdpo:0.5
$(foreach k,30 15 8,$(eval K-$k.reference = hard:$k))
# The weights in this moving average are 60 steps old on average, which is BalancedDPO's period.
ema.reference   = ema:0.0167

dawid-skene.rule = weighted --fit dawid-skene

# Losses of 2025 and 2026 in place of Diffusion-DPO's. They are not among the rows that run by themselves, and have not been run:
#   make ablations ROWS='BalancedDPO sce dmpo-0.01 linear-0.001 smpo guard-0.9 anchor-0.1 timestep-weights arena'
sce.train          = --loss sce
dmpo-0.01.train    = --loss dmpo:0.01
linear-0.001.train = --loss linear:0.001
smpo.train         = --scale-margin 10
smpo.labels        = soft
# The share that SDPO's authors publish for Stable Diffusion 1.5.
guard-0.9.train    = --guard sdpo:0.9
anchor-0.1.train   = --anchor 0.1
timestep-weights.train = --timestep-weights
# Do the votes of metrics want a smaller `a` of Poly-DPO than people's labels? ViPO says that a > 0 suits labels that contradict each
# other, and 0 labels that do not. With a = 0 these rows are BalancedDPO and refresh-only.
#   make ablations ROWS='BalancedDPO refresh-only poly--0.5 poly-0.5 poly-1 poly-2 human-poly--0.5 human-poly-0.5 human-poly-1 human-poly-2'
$(foreach a,-0.5 0.5 1 2,\
    $(eval poly-$a.train = --loss poly:$a)\
    $(eval human-poly-$a.train = --loss poly:$a)\
    $(eval human-poly-$a.labels = human))
# Pairs weigh the gap to be expected between their two models.
arena.labels = arena
arena.rule   = majority --arena $(PAIRS)

# One policy per row and seed. What a row does not set is as in BalancedDPO. DiffusionDPO comes first, because all are compared with
# it.
order    := $(filter DiffusionDPO,$(ROWS)) $(filter-out DiffusionDPO,$(ROWS))
POLICIES := $(foreach row,$(order),$(foreach s,$(SEEDS),$(row)-$s))
$(foreach row,$(ROWS),$(foreach s,$(SEEDS),\
    $(eval $(row)-$s.labels    := $(call value_or,$(row).labels,majority))\
    $(eval $(row)-$s.reference := $(call value_or,$(row).reference,$(BalancedDPO.reference)))\
    $(eval $(row)-$s.train     := $(call value_or,$(row).train,))\
    $(eval $(row)-$s.seed      := $s)\
    $(eval $(row)-$s.name      := $(row))))

# In the report: the two methods of the paper with their first seed, or the first policy where both are left out.
SHOWN = $(or $(filter $(foreach row,DiffusionDPO BalancedDPO,$(row)-$(firstword $(SEEDS))),$(POLICIES)),$(firstword $(POLICIES)))

# Each row, over all its seeds, against base and against DiffusionDPO.
WINRATE_FLAGS = --seeds --against base$(if $(filter DiffusionDPO,$(ROWS)),$(if $(filter-out DiffusionDPO,$(ROWS)),$(comma)DiffusionDPO))

# Prompts that no pair shows. The sampler is of second order and takes half as many steps: its images score within 0.1 standard
# deviations of those of mini.mk (`sample --scheduler dpmpp --steps 10` against `ddim`, 20, on `validation`), in two thirds of the time.
PROMPT_FLAGS = --only-set unseen-pair,unseen-name
SCHEDULER    = dpmpp
SAMPLE_STEPS = 10
