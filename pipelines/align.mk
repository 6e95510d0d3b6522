# The method, as rules: score, vote, encode, train, sample, score, winrate. One experiment's variables are in $(MK).
#
#   make reproduce [X=mini]                  everything, into runs/mini/
#   make reproduce STEPS=240 RUNS=longer     any variable can be given here; what depends on it is made again
#
# Whatever exists is complete (a program writes beside its target and renames), so a killed run goes on with the same command.

X    ?= mini
MK   ?= pipelines/$(X).mk
RUNS ?= runs
# Put before every program that has real work to do: `srun --gres=gpu:1`, `nice`; and before `train`, which can be many processes:
# `mpirun -n 4`. CLUSTER.md has whole command lines.
RUN       ?=
TRAIN_RUN ?= $(RUN)
# Parts that tables of rows are made in, a job each; scores.parquet is then a folder of them, which is read like the file.
SHARDS ?= 1

ifeq ($(wildcard $(MK)),)
$(error there is no $(MK); experiments: $(patsubst pipelines/%.mk,X=%,$(filter-out %/align.mk %/rounds.mk,$(wildcard pipelines/*.mk))))
endif

# $(call own,NAME.KEY,DEFAULT): what the experiment says of this policy or these labels, where it says anything.
own = $(if $(filter undefined,$(origin $1)),$2,$($1))

include $(MK)

SCHEDULER ?= ddim
WINRATE_FLAGS ?=
# Policies on the page of the report: more columns than these nobody compares.
SHOWN ?= $(wordlist 1,4,$(POLICIES))
# Where networks run, and their arithmetic there; `train` takes no f16.
DEVICE ?= cpu
DTYPE  ?= f32
TRAIN_DTYPE ?= $(DTYPE)
where   := --device $(DEVICE) --dtype $(DTYPE)
trained := --device $(DEVICE) --dtype $(TRAIN_DTYPE)

# Every program uses all cores by itself: two at once would only share them. Not so where RUN sends them elsewhere.
ifeq ($(strip $(RUN)),)
.NOTPARALLEL:
endif

D      := $(RUNS)/$(X)
unet   := unet/diffusion_pytorch_model.safetensors
models := base $(POLICIES)

# Folders count by the files in them; of what a program writes as a folder, by the file that it writes last.
base    := $(wildcard $(BASE)/*.json $(BASE)/*/*)
scorers := $(wildcard $(MODELS)/*/*)
latents := $D/latents/latents.parquet
images  := $(models:%=$D/images/%.parquet)
# Candidates come before what they are compared with: the last policy first, the base last.
reverse  = $(if $1,$(call reverse,$(wordlist 2,$(words $1),$1)) $(firstword $1))
scored  := $(models:%=$D/scored/%.parquet)
against := $(call reverse,$(scored))
shown   := base $(SHOWN)
labels  := $(sort $(foreach p,$(POLICIES),$D/labels/$($p.labels).parquet))

# $(call settings,STAGE,VARIABLES) is a file with the values of these variables. It is written anew when one of them has another
# value, and what depends on it follows. Make only reads it while it plans, so `make -n` tells the truth and changes nothing. (No
# newline at its end: of that, make 4.3 keeps or drops what it read by chance.)
settings = $(eval $(call settings_rule,$D/settings/$1,$(foreach v,$2,$v=$(strip $($v)))))$D/settings/$1
define settings_rule
ifneq ($$(strip $$(file <$1)),$(strip $2))
$1: again
endif
$1:
	@mkdir -p $$(@D); printf %s '$(strip $2)' >$$@
endef
again:

# $(call files,TABLE...): the files that hold these tables. The number of parts is in their names, so that none is missed, and it
# stays what it was when the run began.
parts  := $(if $(filter-out 1,$(SHARDS)),$(shell for ((i = 0; i < $(SHARDS); i++)); do \
              printf 'part-%05d-of-%05d.parquet ' $$i $(SHARDS); done))
files   = $(if $(parts),$(foreach t,$1,$(parts:%=$t/%)),$1)
# In the recipe of such a file: where its program writes, and whose it is (images/base.parquet/part-...: base).
to      = $(if $(parts),--shard $(subst -of-,/,$(@F:part-%.parquet=%)) -o $(@D),-o $@)
whose   = $(basename $(firstword $(subst /, ,$*)))
begun  := $(strip $(file <$D/settings/shards))
ifneq ($(filter-out $(SHARDS),$(begun)),)
$(error $D was begun with SHARDS=$(begun); go on with that, or choose other RUNS)
endif
$D/settings/shards:
	@mkdir -p $(@D); printf %s $(SHARDS) >$@

# A killed program leaves finished parts in $1.partial, which the same work picks up. Parts that are not younger than what is
# needed for $1 are of other work: away with them.
forget = @for i in $(filter-out $(base) $(scorers),$^); do [[ $$i -ot $1.partial/plan.json ]] || rm -rf $1.partial; done

## make reproduce      run an experiment and print its table (X=mini; try `make -n reproduce` first)
reproduce: $(call files,$D/scores.parquet) $(labels) $(call files,$(latents)) $(POLICIES:%=$D/%/$(unet)) \
    $D/prompts.parquet $(call files,$(images) $(scored)) \
    $D/winrate.txt $D/winrate.json $D/report.html $D/sheet.png
	@echo; cat $D/winrate.txt; echo; cd $D; echo 'In $D/:'; \
	printf '  %-24s %s\n' \
	    winrate.txt 'this table' \
	    winrate.json 'the same, numbers unrounded' \
	    report.html 'all of it on one page for a browser: intervals, curves, images to sort and filter' \
	    sheet.png 'the same prompts, drawn by each model' \
	    'images/, scored/' 'every image, and its scores' \
	    $(foreach p,$(POLICIES),'$p/' 'the policy: unet/ loads in diffusers, log.jsonl has every step') \
	    'scores.parquet, labels/' 'the scores of the pairs, and the votes'

## make clean-runs     remove what the experiment made (X=mini)
clean-runs:
	rm -rf $D

# What an experiment starts from is the user's to fetch.
$(PAIRS) $(PROMPTS):
	@echo '$@ is not there; the top of $(MK) says where it comes from' >&2; exit 2

# Labels: every metric scores both images of each pair, and a rule makes one preference of the scores.
$(call files,$D/scores.parquet): $(PAIRS) $(scorers) $(call settings,score,METRICS SCORE_FLAGS) | build $D/settings/shards
	$(call forget,$@)
	$(RUN) $(BIN)/score $(PAIRS) --models $(MODELS) --metrics $(METRICS) $(SCORE_FLAGS) $(where) $(to)

# Labels are named after their rule, `single-hps`, unless NAME.rule says more: `weighted --fit dawid-skene`.
rule = $(call own,$1.rule,$(subst -,:,$1))
$(foreach l,$(labels),$(eval $l: $(call settings,vote-$(basename $(notdir $l)),VOTE_FLAGS $(filter $(basename $(notdir $l)).rule,$(.VARIABLES)))))
$(labels): $D/labels/%.parquet: $(call files,$D/scores.parquet) | build
	$(RUN) $(BIN)/vote $D/scores.parquet --rule $(call rule,$*) $(VOTE_FLAGS) -o $@

# Training: from the same latents and the same base, a policy each. What has begun goes on from its last checkpoint,
# unless an input has changed since then.
$(call files,$(latents)): $(PAIRS) $(base) $(call settings,encode,RESOLUTION AUGMENT) | build $D/settings/shards
	$(call forget,$D/latents$(if $(parts),/$(basename $(@F))))
	$(RUN) $(BIN)/encode $(PAIRS) --base $(BASE) --resolution $(RESOLUTION) --augment $(AUGMENT) $(where) $(to:%/latents.parquet=%)

train_settings := STEPS WARMUP LEARNING_RATE BETA BATCH ACCUMULATION RESOLUTION AUGMENT SEED TRAIN_FLAGS
$(foreach p,$(POLICIES),$(eval $D/$p/begun: $D/labels/$($p.labels).parquet \
    $(call settings,train-$p,$p.labels $p.reference $(sort $(filter $p.seed $p.train,$(.VARIABLES))) $(train_settings))))

$(POLICIES:%=$D/%/begun): $(call files,$(latents)) $(base)
	rm -rf $(@D); mkdir -p $(@D); touch $@

$(POLICIES:%=$D/%/$(unet)): $D/%/$(unet): $D/%/begun | build
	$(TRAIN_RUN) $(BIN)/train $D/latents --labels $D/labels/$($*.labels).parquet --base $(BASE) -o $D/$* \
	    --max_train_steps $(STEPS) --lr_warmup_steps $(WARMUP) --learning_rate $(LEARNING_RATE) --beta_dpo $(BETA) \
	    --train_batch_size $(BATCH) --gradient_accumulation_steps $(ACCUMULATION) --reference-mode $($*.reference) \
	    --resolution $(RESOLUTION) --augment $(AUGMENT) --seed $(call own,$*.seed,$(SEED)) $(TRAIN_FLAGS) $(call own,$*.train,) $(trained) \
	    --checkpointing_steps $(CHECKPOINT_STEPS) --checkpoints_total_limit 1 --resume_from_checkpoint latest

# Evaluation: the same prompts and the same noise for every model.
$D/prompts.parquet: $(PROMPTS) $(call settings,prompts,PROMPT_FLAGS) | build
	$(RUN) $(BIN)/prompts $(PROMPTS) $(PROMPT_FLAGS) -o $@

$(foreach p,$(POLICIES),$(eval $(call files,$D/images/$p.parquet): $D/$p/$(unet)))
$(call files,$(images)): $D/images/%: $D/prompts.parquet $(base) \
    $(call settings,sample,IMAGES SCHEDULER SAMPLE_STEPS GUIDANCE SEED SAMPLE_FLAGS) | build $D/settings/shards
	$(call forget,$@)
	$(RUN) $(BIN)/sample $D/prompts.parquet --base $(BASE) $(if $(filter-out base,$(whose)),--unet $D/$(whose)) \
	    --name $(call own,$(whose).name,$(whose)) -n $(IMAGES) --scheduler $(SCHEDULER) --steps $(SAMPLE_STEPS) \
	    --guidance $(GUIDANCE) --seed $(SEED) $(SAMPLE_FLAGS) $(where) $(to)

$(foreach m,$(models),$(eval $(call files,$D/scored/$m.parquet): $(call files,$D/images/$m.parquet)))
$(call files,$(scored)): $D/scored/%: $(scorers) $D/settings/score | build
	$(call forget,$@)
	$(RUN) $(BIN)/score $D/images/$(whose).parquet --models $(MODELS) --metrics $(METRICS) $(SCORE_FLAGS) $(where) $(to)

$D/winrate.txt: $(call files,$(scored)) $(call settings,winrate,POLICIES IMAGES WINRATE_FLAGS NOTE) | build
	{ $(BIN)/winrate $(against) --best-of $(IMAGES) $(WINRATE_FLAGS); $(if $(strip $(NOTE)),echo; echo '$(NOTE)';) } >$@.partial
	mv $@.partial $@

$D/winrate.json: $(call files,$(scored)) $D/settings/winrate | build
	$(BIN)/winrate $(against) --best-of $(IMAGES) $(WINRATE_FLAGS) --json -o $@

# The policies' logs are as old as their weights.
$D/report.html: $D/winrate.json $(call files,$(shown:%=$D/images/%.parquet) $(shown:%=$D/scored/%.parquet)) $(labels) \
    $(SHOWN:%=$D/%/$(unet)) $(call settings,report,SHOWN NOTE) | build
	$(RUN) $(BIN)/report --winrates $< --images $(shown:%=$D/images/%.parquet) --scored $(shown:%=$D/scored/%.parquet) \
	    --logs $(SHOWN:%=$D/%/log.jsonl) --labels $(labels) --base base $(if $(strip $(NOTE)),--note '$(NOTE)') -o $@

$D/sheet.png: $(call files,$(shown:%=$D/images/%.parquet)) $D/settings/report | build
	$(RUN) $(BIN)/report --images $(shown:%=$D/images/%.parquet) --sheet $@

.PHONY: reproduce clean-runs again
