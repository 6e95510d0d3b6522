# Builds, tests and runs; the experiment itself is in pipelines/align.mk.
#
#   make reproduce          the miniature experiment, start to end: offline, on a CPU, in minutes
#   make -n reproduce       what it would do now

MAKEFLAGS += --no-builtin-rules --warn-undefined-variables
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

CARGO_TARGET_DIR ?= target
PREFIX ?= /usr/local
DESTDIR ?=
# Tool names are common words; on a shared machine install them as, say, bdpo-score.
PROGRAM_PREFIX ?=
TOOLS := prompts score vote encode train refresh-ref sample winrate report

# One optimised profile for everything: `make test` and `make reproduce` share what is compiled.
# With `BIN=folder` on the command line the programs of that folder are used as they are. Without it they are built first, with
# FEATURES (cuda, nccl, mpi, cloud; several with commas), which an experiment's file may set: a build with others replaces them.
ifeq ($(origin BIN),command line)
build:
else
BIN := $(CARGO_TARGET_DIR)/release
## make build          compile the programs into target/release (FEATURES=cuda, nccl, mpi, cloud; several with commas)
build:
	cargo build --release --workspace$(if $(strip $(FEATURES)), --features $(FEATURES))
endif

# Some tests read large files that lie beside the repository. Without these files cargo lists the tests as ignored.
all_tests := $(if $(and $(wildcard ../shared/parity/given),$(wildcard ../shared/prompts)),-- --include-ignored)

## make test           all tests, with the real programs
test:
	cargo test --release --workspace $(all_tests)
	tests/cluster/if-mpi

## make test-cloud     tables in object stores, against one that the test plays; compiles once more, with the feature cloud
test-cloud:
	cargo test --release --workspace --features cloud --test cloud

## make test-cluster   several processes, hosts and a Slurm on this machine; installs what that needs (Debian, as root)
test-cluster:
	tests/cluster/install
	tests/cluster/build
	for script in mpirun netns slurm; do BIN=$(CARGO_TARGET_DIR)/mpi tests/cluster/$$script.sh; done

## make test-cuda      on the first GPU: operations against the CPU's, networks, losses and gradients, images against PyTorch's
ON_GPU := TEST_DEVICE=cuda NVIDIA_TF32_OVERRIDE=0 cargo test --release --workspace --features cuda,cudnn
test-cuda:
	$(ON_GPU) --test cuda --test nets
	$(ON_GPU) --test train --test sample $(or $(all_tests),--) _the_numbers_of_ _the_images_of_

# NVIDIA's compiler and headers, as Python packages: they and a host's C++ compiler are all that a check needs, no GPU and no
# driver. CUDA_FEATURES=nccl checks that build too; it needs what tests/cluster/install brings.
CUDA := $(abspath $(CARGO_TARGET_DIR))/cuda
CUDA_PACKAGES := nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
	nvidia-cuda-cccl==13.0.85 nvidia-curand==10.4.0.35
CUDA_FEATURES ?= cuda,cudnn

## make check-cuda     type-check the CUDA build (CUDA_FEATURES=cuda,cudnn) without a GPU; needs g++ and pip, fetches 370 MB
check-cuda: $(CUDA)/nvidia/cu13/lib64
	S=$(CUDA)/nvidia/cu13; CUDA_HOME=$$S CUDA_PATH=$$S CUDA_ROOT=$$S CUDA_TOOLKIT_ROOT_DIR=$$S CUDA_COMPUTE_CAP=80 PATH=$$S/bin:$$PATH \
	  cargo check --workspace --features $(CUDA_FEATURES) --target-dir $(CUDA)/target

$(CUDA)/nvidia/cu13/lib64:
	@command -v g++ >/dev/null || { echo 'check-cuda: g++ is missing, which compiles the kernels with nvcc (Debian: apt-get install g++)' >&2; exit 2; }
	@python3 -m pip --version >/dev/null 2>&1 || { echo 'check-cuda: python3 has no pip, which fetches the compiler (Debian: apt-get install python3-pip)' >&2; exit 2; }
	python3 -m pip install --quiet --no-deps --target $(CUDA) $(CUDA_PACKAGES)
	ln -sfn lib $@

## make install        copy the programs to PREFIX/bin (PREFIX=/usr/local DESTDIR= PROGRAM_PREFIX=)
install: build
	install -d $(DESTDIR)$(PREFIX)/bin
	for tool in $(TOOLS); do install -m 755 $(BIN)/$$tool $(DESTDIR)$(PREFIX)/bin/$(PROGRAM_PREFIX)$$tool; done

## make ablations      the paper's ablations and ours, three seeds each, into runs/ablations/: hours (ROWS=... chooses)
ablations:
	$(MAKE) reproduce X=ablations

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

.PHONY: build test test-cloud test-cluster test-cuda check-cuda install ablations help

include pipelines/align.mk
include pipelines/rounds.mk

# After the experiment's own.
FEATURES ?=
