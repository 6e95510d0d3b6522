# The rehearsal of an experiment: the rules of align.mk with the values of rehearsal.mk, on models of the published sizes and layouts with
# random weights, which `rehearse models` makes. It shows beforehand what the long run needs: memory, disk, GPU, cluster.
#
#   make rehearse X=sd15                                    on this machine's processors, into runs/rehearsal/sd15/
#   make rehearse X=sd15 DEVICE=cuda RUN='srun --gpus=1'    as in CLUSTER.md
#   make rehearse X=sd15 SIZE=tiny                          networks of a sixteenth of the width, in seconds
#   make clean-rehearse X=sd15                              removes it again, 45 GB
#
# Each program is started by a script in runs/rehearsal/sd15/bin/, which measures it where it runs.

REHEARSAL = $(RUNS)/rehearsal
# Size of the networks, number format of the base model (f32, f16), and the numbers of pairs and of prompts in each published format.
SIZE         ?= published
BASE_DTYPE   ?= f32
PAIR_COUNT   ?= 4
PROMPT_COUNT ?= 3

measured = $(REHEARSAL)/$(X)

## make rehearse       run an experiment at full size with random weights, in small: what it takes (X=sd15, sd21 or sdxl; SIZE=tiny)
rehearse:
	$(if $(filter sd15 sd21 sdxl,$(X)),,$(error a rehearsal is of X=sd15, sd21 or sdxl))
	@$(MAKE) --no-print-directory build MK=pipelines/rehearsal.mk
	@mkdir -p $(measured)/bin
	@for tool in $(TOOLS); do \
	    printf '#!/bin/sh\nexec %s run --log %s -- %s "$$@"\n' \
	        '$(abspath $(BIN))/rehearse' '$(measured)/measured.jsonl' "$(abspath $(BIN))/$$tool" >$(measured)/bin/$$tool; \
	    chmod +x $(measured)/bin/$$tool; \
	done; ln -sf '$(abspath $(BIN))/rehearse' $(measured)/bin/
	$(BIN)/rehearse models $(measured)/data --base $(X) --base-dtype $(BASE_DTYPE) --metrics $(METRICS) --size $(SIZE) \
	    --pairs $(PAIR_COUNT) --prompts $(PROMPT_COUNT)
	@$(MAKE) --no-print-directory rehearsed MK=pipelines/rehearsal.mk RUNS=$(REHEARSAL) BIN=$(measured)/bin

# In the make that has the values of rehearsal.mk.
rehearsed: reproduce
	@echo; $(BIN)/rehearse table $D/measured.jsonl --here $(here) --paper $(paper) --budget $(BUDGET)

## make clean-rehearse remove a rehearsal and its models (X=sd15)
clean-rehearse:
	rm -rf $(measured)

.PHONY: rehearse rehearsed clean-rehearse
