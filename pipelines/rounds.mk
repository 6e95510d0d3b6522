# Rounds: the policy samples images, the metrics vote on them, and the policy is trained on these votes. Each round starts from the
# policy of the round before, which is also its reference.
#
#   make rounds X=mini ROUNDS=2        after `make reproduce`, into runs/mini/rounds/
#   make rounds ... ROUND_VOTE='--pairs pareto' ROUND_IMAGES=16     CaPO's pairs in place of the best against the worst
#   make rounds ... ROUND_VOTE='--rule zsum' ROUND_TRAIN='--learning-rate 3e-5'     the rounds alone, not the policy FIRST
#
# Round 1 starts from the policy FIRST. Its own images give pairs that pairs.parquet cannot give: they follow the policy as it moves.

ROUNDS        ?= 2
FIRST         ?= $(lastword $(POLICIES))
# Captions of pairs.parquet to sample in each round, and images per caption. The images with the most and the fewest votes are a pair.
ROUND_PROMPTS ?= 400
ROUND_IMAGES  ?= 4
ROUND_STEPS   ?= $(STEPS)
# Flags of `vote` and `train` in the rounds; a flag of ROUND_TRAIN replaces an earlier one.
ROUND_VOTE    ?= $(VOTE_FLAGS)
ROUND_TRAIN   ?=

R      := $D/rounds
rounds := $(shell seq $(ROUNDS))
# $(call before,N): the checkpoint that round N starts from.
before = $(if $(filter 1,$1),$D/$(FIRST),$R/$(shell echo $$(($1 - 1)))/policy)

## make rounds         sample, score, vote and train again, ROUNDS=2 times, and print the win rates of all rounds
rounds: $R/winrate.txt
	@cat $<

$R/prompts.parquet: $(PAIRS) $(call settings,rounds-prompts,ROUND_PROMPTS) | build
	@mkdir -p $R
	$(BIN)/prompts $(PAIRS) --max $(ROUND_PROMPTS) -o $@

$(foreach r,$(rounds),$(eval $R/$r/drawn.parquet: $(call before,$r)/$(unet)))
$(rounds:%=$R/%/drawn.parquet): $R/%/drawn.parquet: $R/prompts.parquet \
    $(call settings,rounds-sample,ROUND_IMAGES SCHEDULER SAMPLE_STEPS GUIDANCE SAMPLE_FLAGS) | build
	@mkdir -p $(@D)
	$(call keep_stale_parts,$@)
	$(RUN) $(BIN)/sample $R/prompts.parquet --base $(BASE) --unet $(call before,$*) --name round-$* -n $(ROUND_IMAGES) \
	    --scheduler $(SCHEDULER) --steps $(SAMPLE_STEPS) --guidance $(GUIDANCE) --seed $* $(SAMPLE_FLAGS) $(device_flags) -o $@

$(rounds:%=$R/%/votes.parquet): $R/%/votes.parquet: $R/%/drawn.parquet $(scorers) $D/settings/score \
    $(call settings,rounds-vote,ROUND_VOTE) | build
	$(RUN) $(BIN)/score $< --models $(MODELS) --metrics $(METRICS) $(SCORE_FLAGS) $(device_flags) -o $(@D)/drawn-scored.parquet
	$(BIN)/vote $(@D)/drawn-scored.parquet --pairs best-worst $(ROUND_VOTE) -o $@

$(rounds:%=$R/%/policy/started): $R/%/policy/started: $R/%/drawn.parquet $R/%/votes.parquet $(base) \
    $(call settings,rounds-train,ROUND_STEPS ROUND_TRAIN $(filter-out STEPS,$(train_settings)))
	$(start)

$(rounds:%=$R/%/policy/$(unet)): $R/%/policy/$(unet): $R/%/policy/started | build
	$(TRAIN_RUN) $(BIN)/train $R/$*/drawn.parquet --labels $R/$*/votes.parquet --base $(BASE) -o $R/$*/policy \
	    --policy $(call before,$*) --reference $(call before,$*) \
	    --max-train-steps $(ROUND_STEPS) --lr-warmup-steps $(WARMUP) --learning-rate $(LEARNING_RATE) --beta-dpo $(BETA) \
	    --train-batch-size $(BATCH) --gradient-accumulation-steps $(ACCUMULATION) \
	    --resolution $(RESOLUTION) --augment $(AUGMENT) --seed $(SEED) $(TRAIN_FLAGS) $(ROUND_TRAIN) $(train_device_flags) \
	    --checkpointing-steps $(CHECKPOINT_STEPS) --checkpoints-total-limit 1 --resume-from-checkpoint latest

$(rounds:%=$R/%/images.parquet): $R/%/images.parquet: $D/prompts.parquet $R/%/policy/$(unet) $D/settings/sample | build
	$(call keep_stale_parts,$@)
	$(RUN) $(BIN)/sample $D/prompts.parquet --base $(BASE) --unet $R/$*/policy --name round-$* -n $(IMAGES) \
	    --scheduler $(SCHEDULER) --steps $(SAMPLE_STEPS) --guidance $(GUIDANCE) --seed $(SEED) $(SAMPLE_FLAGS) $(device_flags) -o $@

$(rounds:%=$R/%/scored.parquet): $R/%/scored.parquet: $R/%/images.parquet $(scorers) $D/settings/judges | build
	$(call keep_stale_parts,$@)
	$(RUN) $(BIN)/score $< --models $(MODELS) --metrics $(judged) $(SCORE_FLAGS) $(device_flags) -o $@

candidates := $(call reverse,$(rounds:%=$R/%/scored.parquet))
baselines  := $D/scored/$(FIRST).parquet $D/scored/base.parquet
$R/winrate.txt: $(candidates) $(call files,$(baselines)) $(call settings,rounds,ROUNDS FIRST IMAGES) | build
	$(BIN)/winrate $(candidates) $(baselines) --best-of $(IMAGES) >$@.partial
	mv $@.partial $@

.PHONY: rounds
