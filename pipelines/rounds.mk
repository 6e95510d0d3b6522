# Rounds: the policy draws, the metrics vote on its own images, and it is trained on, from itself and with itself as the reference.
#
#   make rounds X=mini ROUNDS=2        after `make reproduce`, into runs/mini/rounds/
#
# Round 1 starts where FIRST ended. What pairs.parquet cannot give, these pairs do: they follow the policy as it moves.

ROUNDS        ?= 2
FIRST         ?= $(lastword $(POLICIES))
# Captions of the pairs that are drawn anew in each round, and images of each: of these the best and the worst by votes are a pair.
ROUND_PROMPTS ?= 400
ROUND_IMAGES  ?= 4
ROUND_STEPS   ?= $(STEPS)

R      := $D/rounds
rounds := $(shell seq $(ROUNDS))
# $(call before,N): the checkpoint that round N starts from.
before = $(if $(filter 1,$1),$D/$(FIRST),$R/$(shell echo $$(($1 - 1))))

## make rounds         sample, score, vote and train again, ROUNDS=2 times, with the win rate after each
rounds: $R/winrate.txt
	@cat $<

$R/prompts.parquet: $(PAIRS) $(call settings,rounds-prompts,ROUND_PROMPTS) | build
	@mkdir -p $R
	$(BIN)/prompts $(PAIRS) --max $(ROUND_PROMPTS) -o $@

$(rounds:%=$R/%/drawn.parquet): $(call settings,rounds-sample,ROUND_IMAGES SCHEDULER SAMPLE_STEPS GUIDANCE SAMPLE_FLAGS)
$(rounds:%=$R/%/begun): $(call settings,rounds-train,ROUND_STEPS $(filter-out STEPS,$(train_settings)))

define round
$R/$1/drawn.parquet: $R/prompts.parquet $(call before,$1)/$(unet) | build
	@mkdir -p $R/$1
	$$(call forget,$$@)
	$(RUN) $(BIN)/sample $R/prompts.parquet --base $(BASE) --unet $(call before,$1) --name round-$1 -n $(ROUND_IMAGES) \
	    --scheduler $(SCHEDULER) --steps $(SAMPLE_STEPS) --guidance $(GUIDANCE) --seed $1 $(SAMPLE_FLAGS) $(where) -o $$@

$R/$1/votes.parquet: $R/$1/drawn.parquet $(scorers) $D/settings/score | build
	$(RUN) $(BIN)/score $R/$1/drawn.parquet --models $(MODELS) --metrics $(METRICS) $(SCORE_FLAGS) $(where) -o - \
	    | $(BIN)/vote - --pairs best-worst $(VOTE_FLAGS) -o $$@

$R/$1/begun: $R/$1/drawn.parquet $R/$1/votes.parquet $(base)
	rm -rf $R/$1/unet $R/$1/state $R/$1/checkpoint-* $R/$1/log.jsonl; touch $$@

$R/$1/$(unet): $R/$1/begun | build
	$(TRAIN_RUN) $(BIN)/train $R/$1/drawn.parquet --labels $R/$1/votes.parquet --base $(BASE) -o $R/$1 \
	    --policy $(call before,$1) --reference $(call before,$1) \
	    --max_train_steps $(ROUND_STEPS) --lr_warmup_steps $(WARMUP) --learning_rate $(LEARNING_RATE) --beta_dpo $(BETA) \
	    --train_batch_size $(BATCH) --gradient_accumulation_steps $(ACCUMULATION) \
	    --resolution $(RESOLUTION) --augment $(AUGMENT) --seed $(SEED) $(TRAIN_FLAGS) $(trained) \
	    --checkpointing_steps $(CHECKPOINT_STEPS) --checkpoints_total_limit 1 --resume_from_checkpoint latest

$R/$1/images.parquet: $D/prompts.parquet $R/$1/$(unet) $D/settings/sample | build
	$$(call forget,$$@)
	$(RUN) $(BIN)/sample $D/prompts.parquet --base $(BASE) --unet $R/$1 --name round-$1 -n $(IMAGES) \
	    --scheduler $(SCHEDULER) --steps $(SAMPLE_STEPS) --guidance $(GUIDANCE) --seed $(SEED) $(SAMPLE_FLAGS) $(where) -o $$@

$R/$1/scored.parquet: $R/$1/images.parquet $(scorers) $D/settings/score | build
	$$(call forget,$$@)
	$(RUN) $(BIN)/score $R/$1/images.parquet --models $(MODELS) --metrics $(METRICS) $(SCORE_FLAGS) $(where) -o $$@
endef
$(foreach r,$(rounds),$(eval $(call round,$r)))

ranked := $(call reverse,$(rounds:%=$R/%/scored.parquet))
begin  := $D/scored/$(FIRST).parquet $D/scored/base.parquet
$R/winrate.txt: $(ranked) $(call files,$(begin)) $(call settings,rounds,ROUNDS FIRST IMAGES) | build
	$(BIN)/winrate $(ranked) $(begin) --best-of $(IMAGES) >$@.partial
	mv $@.partial $@

.PHONY: rounds
