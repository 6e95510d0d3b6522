# The protocol by which papers of 2025 and 2026 compare published models: each draws one image per prompt from the same noise, and
# six metrics judge the images. Nothing is trained, and no metric votes.
#
#   make protocol X=sd15                                        the models of sd15.mk, into runs/sd15/protocol/
#   make protocol X=sd15 UNETS='mine=runs/sd15/BalancedDPO'     these models, each as NAME=FOLDER
#
# Per model it prints the mean scores, as the papers' tables have them; its win rate against the base by each metric, set by set; and
# the wins, ties and losses, averaged over the metrics.

# Models to draw from beside the base: NAME=FOLDER (or a hub id, or one file), separated by spaces.
UNETS ?= $(foreach p,$(POLICIES),$p=$D/$p)
# [sdpo] The protocol of Diffusion-SDPO's code: seed 0, one image per prompt, 50 steps, guidance 7.5.
PROTOCOL_IMAGES   ?= 1
PROTOCOL_STEPS    ?= 50
PROTOCOL_GUIDANCE ?= 7.5
# [field] The six columns of Semi-DPO's and ViPO's tables, HPS in version 2.1.
PROTOCOL_METRICS  ?= imagereward,hps,pickscore,aesthetic,clip,mps
PROTOCOL_SCORE_FLAGS ?= --hps-version 2.1
# Every prompt of PROMPTS counts, once per set; the papers leave none out for safety.
PROTOCOL_PROMPT_FLAGS ?=

P := $D/protocol
drawn_by := $(foreach u,$(UNETS),$(firstword $(subst =, ,$u)))
$(foreach u,$(UNETS),$(eval folder.$(firstword $(subst =, ,$u)) := $(patsubst $(firstword $(subst =, ,$u))=%,%,$u)))

## make protocol       judge published models, UNETS='NAME=FOLDER ...', without training (X=sd15, X=sdxl, X=mini)
protocol: $P/table.txt
	@cat $<

# Before any work: models that are not made here must be there and whole, or in the hub's cache.
protocol_given := $(BASE) $(filter-out $(POLICIES:%=$D/%),$(foreach n,$(drawn_by),$(folder.$n)))
protocol-models: | build
	@for model in $(protocol_given); do \
	    part=$$model; [[ $$model == '$(BASE)' || ! -d $$model/$(DENOISER) ]] || part=$$model/$(DENOISER); \
	    $(BIN)/check -q --quick "$$part" || [[ $$? == 1 && ! -e $$model ]] || \
	        { echo "protocol: $$model cannot be drawn from: \`check $$part\` says what is missing" >&2; exit 2; }; \
	done

$P/prompts.parquet: $(PROMPTS) $(call settings,protocol-prompts,PROTOCOL_PROMPT_FLAGS) | build protocol-models
	@mkdir -p $P
	$(BIN)/prompts $(PROMPTS) $(PROTOCOL_PROMPT_FLAGS) -o $@

$(if $(filter base,$(drawn_by)),$(error UNETS: `base` is the name of $(BASE), which is always drawn from; choose another))

# A policy of this experiment is trained first; of another model the files are known if it is a folder here.
$(foreach n,$(drawn_by),$(eval $P/images/$n.parquet: $(call settings,protocol-$n,folder.$n) \
    $(if $(filter $(folder.$n),$(POLICIES:%=$D/%)),$(folder.$n)/$(unet),$(wildcard $(folder.$n)/$(DENOISER)/*))))
protocol_images := $(patsubst %,$P/images/%.parquet,base $(drawn_by))
$(protocol_images): $P/images/%.parquet: $P/prompts.parquet $(base) \
    $(call settings,protocol-sample,SCHEDULER PROTOCOL_IMAGES PROTOCOL_STEPS PROTOCOL_GUIDANCE) | build
	@mkdir -p $(@D)
	$(call keep_stale_parts,$@)
	$(RUN) $(BIN)/sample $< --base $(BASE) $(addprefix --unet ,$(folder.$*)) --name $* -n $(PROTOCOL_IMAGES) \
	    --scheduler $(SCHEDULER) --steps $(PROTOCOL_STEPS) --guidance $(PROTOCOL_GUIDANCE) --seed 0 $(device_flags) -o $@
folder.base :=

protocol_scored := $(protocol_images:$P/images/%=$P/scored/%)
$(protocol_scored): $P/scored/%: $P/images/% $(scorers) $(call settings,protocol-score,PROTOCOL_METRICS PROTOCOL_SCORE_FLAGS) | build
	@mkdir -p $(@D)
	$(call keep_stale_parts,$@)
	$(RUN) $(BIN)/score $< --models $(MODELS) --metrics $(PROTOCOL_METRICS) $(PROTOCOL_SCORE_FLAGS) $(device_flags) -o $@

protocol_against := $(BIN)/winrate $(call reverse,$(protocol_scored)) --best-of $(PROTOCOL_IMAGES)
$P/table.txt: $(protocol_scored) $(call settings,protocol-table,UNETS PROTOCOL_IMAGES NOTE) | build
	{ $(protocol_against) --means; echo; $(protocol_against) --against base; echo; \
	  $(protocol_against) --against base --tests --format csv | awk -f pipelines/macro.awk; \
	  $(if $(strip $(NOTE)),echo; printf '%s\n' $(call quoted,$(NOTE));) } >$@.partial
	mv $@.partial $@

.PHONY: protocol protocol-models
