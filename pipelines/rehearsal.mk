# The values of a rehearsal (rehearse.mk): those of the experiment X, with fewer rows, fewer steps and smaller images.

DATA = $(RUNS)/$(X)/data
# The experiments name a GPU; a rehearsal runs on the processors unless it is told to. A CPU computes in f32.
DEVICE ?= cpu
ifeq ($(DEVICE),cpu)
DTYPE       ?= f32
TRAIN_DTYPE ?= f32
FEATURES    ?=
endif

include pipelines/$(X).mk

# The work of the experiment and of its rehearsal, for the comparison. Pick-a-Pic v2 has 959,040 pairs; 1,576 prompts are safe.
counts = images=$(IMAGES),steps=$(STEPS),batch=$(shell echo $$(($(BATCH) * $(ACCUMULATION)))),sample-steps=$(SAMPLE_STEPS),resolution=$(RESOLUTION)
paper := pairs=959040,prompts=1576,checkpoints=2,$(counts)
here   = checkpoints=1,pairs=$(PAIR_COUNT),prompts=$(shell echo $$((3 * $(PROMPT_COUNT)))),$(counts)

STEPS            = 2
# None before the last, which the whole experiment keeps beside it.
CHECKPOINT_STEPS = 2
BATCH            = 1
ACCUMULATION     = 1
# After the first step, so that the checkpoint holds a refreshed reference.
BalancedDPO.reference = hard:1
IMAGES           = 1
SAMPLE_STEPS     = 2
RESOLUTION       = $(if $(filter tiny,$(SIZE)),64,256)
SAMPLE_FLAGS     = --height $(RESOLUTION) --width $(RESOLUTION)

# Gigabytes of memory that each program may take; measured on two cores, and a tenth more.
BUDGET = prompts=1,score=16,vote=1,encode=4,train=20,sample=8,report=1

ifeq ($(X),sdxl)
# All of its 2.6 billion weights with gradients and moments do not fit a machine of 24 GB.
TRAIN_FLAGS = --lora-rank 8 --merge --save-dtype f16
BUDGET      = prompts=1,score=16,vote=1,encode=6,train=20,sample=16,report=1
endif

NOTE = This is a rehearsal with random weights: the images are noise, and no rate means anything.
