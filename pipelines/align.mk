# The method as make rules: score, vote, encode, train, sample, score, winrate. $(MK) holds the variables of one experiment.
#
#   make reproduce [X=mini]                  run everything, into runs/mini/
#   make reproduce STEPS=240 RUNS=longer     set any variable here; the stages that depend on it are made again
#
# A file that exists is complete, because every program writes beside its target and then renames. A killed run therefore resumes
# with the same command. What took hours is never deleted: a policy whose inputs have changed is renamed to NAME.1, NAME.2, ...

X    ?= mini
MK   ?= pipelines/$(X).mk
RUNS ?= runs
# RUN is put before every program with real work to do, for example `srun --gres=gpu:1` or `nice`. TRAIN_RUN is put before `train`,
# which may be several processes, for example `mpirun -n 4`. CLUSTER.md has whole command lines.
RUN       ?=
TRAIN_RUN ?= $(RUN)
# The number of parts that each table is made in, one job per part. A table is then a folder of parts, which is read like a file.
SHARDS ?= 1

ifeq ($(wildcard $(MK)),)
$(error there is no $(MK); experiments: $(patsubst pipelines/%.mk,X=%,$(filter-out %/align.mk %/rounds.mk %/protocol.mk %/rehearse.mk %/rehearsal.mk,$(wildcard pipelines/*.mk))))
endif

# $(call value_or,NAME.KEY,DEFAULT): the value of this variable if the experiment sets it, else DEFAULT.
value_or = $(if $(filter undefined,$(origin $1)),$2,$($1))

comma := ,

# $(call share,N): one Nth of STEPS, and 1 at least, so that a run of another length has the same shape.
share = $(shell echo $$(($(STEPS) < $1 ? 1 : $(STEPS) / $1)))

include $(MK)

SCHEDULER ?= ddim
WINRATE_FLAGS ?=
# Metrics that judge the images and never vote on a pair.
HELD_OUT ?=
# Policies shown in the report; more columns are hard to compare.
SHOWN ?= $(wordlist 1,4,$(POLICIES))
# The device that runs the networks, and their arithmetic there; `train` does not accept f16.
DEVICE ?= cpu
DTYPE  ?= f32
TRAIN_DTYPE ?= $(DTYPE)
device_flags       := --device $(DEVICE) --dtype $(DTYPE)
train_device_flags := --device $(DEVICE) --dtype $(TRAIN_DTYPE)

# One program uses all cores of this machine, so two at once would not be faster, unless RUN sends them elsewhere.
ifeq ($(strip $(RUN)),)
.NOTPARALLEL:
endif

D      := $(RUNS)/$(X)
# The denoiser's folder in a checkpoint.
DENOISER ?= unet
unet   := $(DENOISER)/diffusion_pytorch_model.safetensors
models := base $(POLICIES)

# A folder is tracked by the files in it; a folder that a program writes, by the file that it writes last.
base    := $(wildcard $(BASE)/*.json $(BASE)/*/*)
scorers := $(wildcard $(MODELS)/*/*)
latents := $D/latents/latents.parquet
images  := $(models:%=$D/images/%.parquet)
# `winrate` takes candidates before baselines: the last policy first, the base last.
reverse  = $(if $1,$(call reverse,$(wordlist 2,$(words $1),$1)) $(firstword $1))
scored  := $(models:%=$D/scored/%.parquet)
against := $(call reverse,$(scored))
shown   := base $(SHOWN)
labels  := $(sort $(foreach p,$(POLICIES),$D/labels/$($p.labels).parquet))

# $(call quoted,TEXT): one word of the shell, whatever characters TEXT has.
quoted = '$(subst ','\'',$(strip $1))'

# $(call settings,STAGE,VARIABLES): a file that holds the values of these variables. It is written again when a value has changed,
# and so everything that depends on it is made again. The values are compared as variables and never parsed as make's own text, so
# they may hold quotes, commas, parentheses, `#` and `$`. Make only reads the file while it plans: `make -n` changes nothing, which
# is why the recipe does not use $(file >...), expanded under -n too. The file has no newline at its end, because make 4.3 is
# unreliable about dropping one when it reads.
settings = $(eval $D/settings/$1.now := $$(foreach v,$$2,$$v=$$(strip $$($$v))))$(eval $(call settings_rule,$D/settings/$1))$D/settings/$1
define settings_rule
ifneq ($$(strip $$(file <$1)),$$(strip $$($1.now)))
$1: FORCE
endif
$1:
	@mkdir -p $$(@D); printf %s $$(call quoted,$$($1.now)) >$$@
endef
FORCE:

# $(call files,TABLE...): the files that hold these tables. Their names contain the number of parts, so that a missing one is
# noticed. The number stays what it was when the experiment was started.
parts := $(if $(filter-out 1,$(SHARDS)),$(shell for ((i = 0; i < $(SHARDS); i++)); do \
             printf 'part-%05d-of-%05d.parquet ' $$i $(SHARDS); done))
files  = $(if $(parts),$(foreach t,$1,$(parts:%=$t/%)),$1)
# For use in the recipe of such a file: the flags that name the program's output, and the model that it belongs to (`base` for
# images/base.parquet and for images/base.parquet/part-...).
output_flags = $(if $(parts),--shard $(subst -of-,/,$(@F:part-%.parquet=%)) -o $(@D),-o $@)
model        = $(basename $(firstword $(subst /, ,$*)))
first_shards := $(strip $(file <$D/settings/shards))
ifneq ($(filter-out $(SHARDS),$(first_shards)),)
$(error $D was begun with SHARDS=$(first_shards); use that number again, or choose other RUNS)
endif
$D/settings/shards:
	@mkdir -p $(@D); printf %s $(SHARDS) >$@

# The recipe of FOLDER/started: makes an empty folder to train in. What an earlier training left there is renamed to FOLDER.1.
start = @rm -f $@; rmdir $(@D) 2>/dev/null || pipelines/set-aside $(@D); mkdir -p $(@D); touch $@

# A killed program leaves its finished parts in OUTPUT.partial, and the same work picks them up. Parts that are older than an input
# are renamed to OUTPUT.partial.1, because the program would refuse to continue them.
keep_stale_parts = @pipelines/set-aside $1.partial $(filter-out $(base) $(scorers),$^)

## make reproduce      run an experiment and print its table (X=mini; try `make -n reproduce` first)
reproduce: $(call files,$D/scores.parquet) $(labels) $(call files,$(latents)) $(POLICIES:%=$D/%/$(unet)) \
    $D/prompts.parquet $(call files,$(images) $(scored)) \
    $D/winrate.txt $D/winrate.json $D/report.html $D/sheet.png
	@echo; cat $D/winrate.txt; echo; cd $D; echo 'In $D/:'; \
	printf '  %-24s %s\n' \
	    winrate.txt 'this table' \
	    winrate.json 'the same, numbers unrounded' \
	    report.html 'all results on one page for a browser: intervals, curves, images to sort and filter' \
	    sheet.png 'the same prompts, drawn by each model' \
	    'images/, scored/' 'every image, and its scores' \
	    $(foreach p,$(POLICIES),'$p/' 'a policy: $(DENOISER)/ loads in diffusers, log.jsonl has every step') \
	    'scores.parquet, labels/' 'the scores of the pairs, and the votes'

## make clean-runs     remove what the experiment made (X=mini)
clean-runs:
	rm -rf $D

# The user fetches the data that an experiment starts from.
$(PAIRS) $(PROMPTS):
	@echo '$@ does not exist; the top of $(MK) says where to get it' >&2; exit 2

# Labels: every metric scores both images of each pair, and a rule turns the scores into one preference per pair.
$(call files,$D/scores.parquet): $(PAIRS) $(scorers) $(call settings,score,METRICS SCORE_FLAGS) | build $D/settings/shards
	$(call keep_stale_parts,$@)
	$(RUN) $(BIN)/score $(PAIRS) --models $(MODELS) --metrics $(METRICS) $(SCORE_FLAGS) $(device_flags) $(output_flags)

# A label file is named after its rule, for example `single-hps`, unless NAME.rule has the flags: `weighted --fit dawid-skene`.
rule = $(call value_or,$1.rule,$(subst -,:,$1))
$(foreach l,$(labels),$(eval $l: $(call settings,vote-$(basename $(notdir $l)),VOTE_FLAGS $(filter $(basename $(notdir $l)).rule,$(.VARIABLES)))))
$(labels): $D/labels/%.parquet: $(call files,$D/scores.parquet) | build
	$(RUN) $(BIN)/vote $D/scores.parquet --rule $(call rule,$*) $(VOTE_FLAGS) -o $@

# Training: every policy starts from the same base and uses the same latents. A killed training resumes from its last checkpoint,
# unless an input or a setting has changed since it was started (NAME/started is older than it).
$(call files,$(latents)): $(PAIRS) $(base) $(call settings,encode,RESOLUTION AUGMENT) | build $D/settings/shards
	$(call keep_stale_parts,$D/latents$(if $(parts),/$(basename $(@F))))
	$(RUN) $(BIN)/encode $(PAIRS) --base $(BASE) --resolution $(RESOLUTION) --augment $(AUGMENT) $(device_flags) $(output_flags:%/latents.parquet=%)

train_settings := STEPS WARMUP LEARNING_RATE BETA BATCH ACCUMULATION RESOLUTION AUGMENT SEED TRAIN_FLAGS
$(foreach p,$(POLICIES),$(eval $D/$p/started: $D/labels/$($p.labels).parquet \
    $(call settings,train-$p,$p.labels $p.reference $(sort $(filter $p.seed $p.train,$(.VARIABLES))) $(train_settings))))

$(POLICIES:%=$D/%/started): $(call files,$(latents)) $(base)
	$(start)

$(POLICIES:%=$D/%/$(unet)): $D/%/$(unet): $D/%/started | build
	$(TRAIN_RUN) $(BIN)/train $D/latents --labels $D/labels/$($*.labels).parquet --base $(BASE) -o $D/$* \
	    --max-train-steps $(STEPS) --lr-warmup-steps $(WARMUP) --learning-rate $(LEARNING_RATE) --beta-dpo $(BETA) \
	    --train-batch-size $(BATCH) --gradient-accumulation-steps $(ACCUMULATION) --reference-mode $($*.reference) \
	    --resolution $(RESOLUTION) --augment $(AUGMENT) --seed $(call value_or,$*.seed,$(SEED)) $(TRAIN_FLAGS) $(call value_or,$*.train,) $(train_device_flags) \
	    --checkpointing-steps $(CHECKPOINT_STEPS) --checkpoints-total-limit 1 --resume-from-checkpoint latest

# Evaluation: the same prompts and the same noise for every model.
$D/prompts.parquet: $(PROMPTS) $(call settings,prompts,PROMPT_FLAGS) | build
	$(RUN) $(BIN)/prompts $(PROMPTS) $(PROMPT_FLAGS) -o $@

$(foreach p,$(POLICIES),$(eval $(call files,$D/images/$p.parquet): $D/$p/$(unet)))
$(call files,$(images)): $D/images/%: $D/prompts.parquet $(base) \
    $(call settings,sample,IMAGES SCHEDULER SAMPLE_STEPS GUIDANCE SEED SAMPLE_FLAGS) | build $D/settings/shards
	$(call keep_stale_parts,$@)
	$(RUN) $(BIN)/sample $D/prompts.parquet --base $(BASE) $(if $(filter-out base,$(model)),--unet $D/$(model)) \
	    --name $(call value_or,$(model).name,$(model)) -n $(IMAGES) --scheduler $(SCHEDULER) --steps $(SAMPLE_STEPS) \
	    --guidance $(GUIDANCE) --seed $(SEED) $(SAMPLE_FLAGS) $(device_flags) $(output_flags)

$(foreach m,$(models),$(eval $(call files,$D/scored/$m.parquet): $(call files,$D/images/$m.parquet)))
judged = $(METRICS)$(addprefix $(comma),$(HELD_OUT))
$(call files,$(scored)): $D/scored/%: $(scorers) $(call settings,judges,METRICS HELD_OUT SCORE_FLAGS) | build
	$(call keep_stale_parts,$@)
	$(RUN) $(BIN)/score $D/images/$(model).parquet --models $(MODELS) --metrics $(judged) $(SCORE_FLAGS) $(device_flags) $(output_flags)

$D/winrate.txt: $(call files,$(scored)) $(call settings,winrate,POLICIES IMAGES WINRATE_FLAGS NOTE) | build
	{ $(BIN)/winrate $(against) --best-of $(IMAGES) $(WINRATE_FLAGS); $(if $(strip $(NOTE)),echo; printf '%s\n' $(call quoted,$(NOTE));) } >$@.partial
	mv $@.partial $@

$D/winrate.json: $(call files,$(scored)) $D/settings/winrate | build
	$(BIN)/winrate $(against) --best-of $(IMAGES) $(WINRATE_FLAGS) --json -o $@

# The policies' logs are as old as their weights.
$D/report.html: $D/winrate.json $(call files,$(shown:%=$D/images/%.parquet) $(shown:%=$D/scored/%.parquet)) $(labels) \
    $(SHOWN:%=$D/%/$(unet)) $(call settings,report,SHOWN NOTE) | build
	$(RUN) $(BIN)/report --winrates $< --images $(shown:%=$D/images/%.parquet) --scored $(shown:%=$D/scored/%.parquet) \
	    --logs $(SHOWN:%=$D/%/log.jsonl) --labels $(labels) --base base $(if $(strip $(NOTE)),--note $(call quoted,$(NOTE))) -o $@

$D/sheet.png: $(call files,$(shown:%=$D/images/%.parquet)) $D/settings/report | build
	$(RUN) $(BIN)/report --images $(shown:%=$D/images/%.parquet) --sheet $@

.PHONY: reproduce clean-runs FORCE
