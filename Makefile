# Builds, tests and runs the programs. The experiments themselves are in pipelines/align.mk.
#
#   make reproduce          runs the miniature experiment from start to end: offline, on a CPU, in minutes
#   make -n reproduce       prints the commands without running them

MAKEFLAGS += --no-builtin-rules --warn-undefined-variables
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

CARGO_TARGET_DIR ?= target
PREFIX ?= /usr/local
DESTDIR ?=
# The names of the tools are common words. PROGRAM_PREFIX=bdpo- installs them as bdpo-score and so on.
PROGRAM_PREFIX ?=
TOOLS := prompts pairs score vote encode train refresh-ref sample winrate report check

# One optimised profile for everything: `make test` and `make reproduce` share what is compiled.
# With `BIN=folder` on the command line the programs of that folder are used as they are. Without it the programs are built first, with
# the features in FEATURES, which an experiment's file may set. A build with other features replaces them.
ifeq ($(origin BIN),command line)
build:
else
BIN := $(CARGO_TARGET_DIR)/release
## make build          compile the programs into target/release (FEATURES=cuda,nccl,mpi,cloud: any of these)
build:
	cargo build --release --workspace$(if $(strip $(FEATURES)), --features $(FEATURES))
endif

# Some tests need large files that lie beside the repository, or programs such as Chromium. tests/left-out names those whose need is not met.
## make test           run all tests, through the real programs; says which are left out because something is missing
test:
	left_out=$$(tests/left-out) && cargo test --release --workspace -- --include-ignored $$left_out
	tests/cluster/if-mpi

## make test-cloud     test tables in object stores, with a simulated store; compiles once more, with the feature cloud
test-cloud:
	cargo test --release --workspace --features cloud --test cloud

## make test-cluster   test several processes, hosts and Slurm on this machine; installs what that needs (Debian, as root)
test-cluster:
	tests/cluster/install
	tests/cluster/build
	for script in mpirun netns slurm; do BIN=$(CARGO_TARGET_DIR)/mpi tests/cluster/$$script.sh; done

## make test-hardening attack the programs: damaged files, kills, full disks, hostile names; an hour, with another seed every day
test-hardening: build
	BIN=$(BIN) tests/hardening

## make test-cuda      test on the first GPU: operations against the CPU, networks, losses, gradients and images against PyTorch
ON_GPU := TEST_DEVICE=cuda NVIDIA_TF32_OVERRIDE=0 cargo test --release --workspace --features cuda,cudnn
test-cuda:
	$(ON_GPU) --test cuda --test nets
	left_out=$$(tests/left-out) && $(ON_GPU) --test train --test sample -- --include-ignored $$left_out _the_numbers_of_ _the_images_of_

## make test-kernels   run our kernels for GPUs on the CPU: against f64, in several orders of threads, with sanitizers; needs g++
test-kernels:
	tests/kernels/run $(CARGO_TARGET_DIR)/kernels

# NVIDIA's compiler and headers come as Python packages. They and a C++ compiler are enough for the check; it needs no GPU and no driver.
# CUDA_FEATURES=cuda,cudnn,nccl checks that build too, and needs the packages of tests/cluster/install.
CUDA := $(abspath $(CARGO_TARGET_DIR))/cuda
CUDA_PACKAGES := nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
	nvidia-cuda-cccl==13.0.85 nvidia-curand==10.4.0.35
CUDA_FEATURES ?= cuda,cudnn

# A command with the CUDA toolkit in a folder.
with_cuda = CUDA_HOME=$1 CUDA_PATH=$1 CUDA_ROOT=$1 CUDA_TOOLKIT_ROOT_DIR=$1 CUDA_COMPUTE_CAP=80 PATH="$1/bin:$$PATH"

## make check-cuda     type-check the CUDA build without a GPU (CUDA_FEATURES=cuda,cudnn); needs g++ and pip, fetches 370 MB
check-cuda: $(CUDA)/nvidia/cu13/lib64
	tests/kernels/ptxas $(CUDA)/nvidia/cu13
	$(call with_cuda,$(CUDA)/nvidia/cu13) cargo check --workspace --features $(CUDA_FEATURES) --target-dir $(CUDA)/target

GPU_TARGET ?= $(abspath $(CARGO_TARGET_DIR))/gpu
NULL_CUDA ?= $(GPU_TARGET)/cuda
## make gpu-ledger     what a step of train asks of a GPU, counted without one: JSON; fails above tests/gpu/budgets.json; compiles once more
gpu-ledger:
	@tests/gpu/null/build $(NULL_CUDA)
	@$(call with_cuda,$(NULL_CUDA)) cargo build --release --workspace --bin train --features cuda,cudnn --target-dir $(GPU_TARGET) >&2
	@tests/gpu/ledger --bin $(GPU_TARGET)/release --cuda $(NULL_CUDA)

$(CUDA)/nvidia/cu13/lib64:
	@command -v g++ >/dev/null || { echo 'check-cuda: g++ is missing, which compiles the kernels with nvcc (Debian: apt-get install g++)' >&2; exit 2; }
	@python3 -m pip --version >/dev/null 2>&1 || { echo 'check-cuda: python3 has no pip, which fetches the compiler (Debian: apt-get install python3-pip)' >&2; exit 2; }
	python3 -m pip install --quiet --no-deps --target $(CUDA) $(CUDA_PACKAGES)
	ln -sfn lib $@

## make install        copy the programs, their man pages and completions to PREFIX (PREFIX=/usr/local DESTDIR= PROGRAM_PREFIX=)
installed = $(DESTDIR)$(PREFIX)/share
install: build
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(installed)'/{man/man1,bash-completion/completions,zsh/site-functions} \
	    '$(installed)'/{fish/vendor_completions.d,doc/balanced-dpo}
	for tool in $(TOOLS); do \
	    name=$(PROGRAM_PREFIX)$$tool; program='$(DESTDIR)$(PREFIX)'/bin/$$name; \
	    install -m 755 '$(BIN)'/$$tool "$$program"; \
	    "$$program" --generate man >'$(installed)'/man/man1/$$name.1; \
	    "$$program" --generate complete-bash >'$(installed)'/bash-completion/completions/$$name; \
	    "$$program" --generate complete-zsh >'$(installed)'/zsh/site-functions/_$$name; \
	    "$$program" --generate complete-fish >'$(installed)'/fish/vendor_completions.d/$$name.fish; \
	done
	install -m 644 README.md LICENSE common/FORMATS.md tools/METHOD.md pipelines/TUTORIAL.md '$(installed)/doc/balanced-dpo'

# Programs that need no library of the system, so that they run on any Linux. The C parts are compiled with musl's compiler.
STATIC  := $(shell uname -m)-unknown-linux-musl
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
DIST    := $(CARGO_TARGET_DIR)/dist
## make static         compile static programs into target/dist/; needs musl-gcc (Debian: apt-get install musl-tools)
static:
	@command -v musl-gcc >/dev/null || { echo 'static: musl-gcc is missing (Debian: apt-get install musl-tools)' >&2; exit 2; }
	rustup target add $(STATIC)
	cargo build --release --target $(STATIC)
	rm -rf $(DIST)/static && $(MAKE) install BIN=$(CARGO_TARGET_DIR)/$(STATIC)/release DESTDIR=$(DIST)/static PREFIX=
	tar -C $(DIST)/static -czf $(DIST)/balanced-dpo-$(VERSION)-$(STATIC).tar.gz .

## make deb            make a Debian package, target/dist/*.deb (PROGRAM_PREFIX=bdpo-, since the names are common words)
deb: PROGRAM_PREFIX := $(or $(PROGRAM_PREFIX),bdpo-)
deb: build
	rm -rf $(DIST)/deb
	$(MAKE) install BIN=$(BIN) DESTDIR=$(DIST)/deb PREFIX=/usr PROGRAM_PREFIX=$(PROGRAM_PREFIX)
	pipelines/packages/deb $(DIST)/deb $(VERSION) $(DIST)/balanced-dpo_$(VERSION)_$$(dpkg --print-architecture).deb

## make dist           static programs and the Debian package
dist: static deb

## make ablations      run the paper's ablations and ours, three seeds each, into runs/ablations/; takes hours (ROWS=... SEEDS=... select)
ablations:
	$(MAKE) reproduce X=ablations

## make pictures       make README's pictures in pipelines/mini/ from runs/mini/, after `make reproduce`
pictures: build
	$(BIN)/report --images $(patsubst %,$(RUNS)/mini/images/%.parquet,base DiffusionDPO BalancedDPO) --prompts 6 \
	    --sheet pipelines/mini/sheet.png
	awk -f pipelines/mini/bars.awk $(RUNS)/mini/winrate.txt >pipelines/mini/bars.svg

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

.PHONY: build test test-cloud test-cluster test-hardening test-cuda test-kernels check-cuda gpu-ledger install static deb dist ablations pictures help

include pipelines/rehearse.mk
include pipelines/align.mk
include pipelines/rounds.mk
include pipelines/protocol.mk

# The experiment's own value comes first.
FEATURES ?=

# A variable on the command line that nothing here reads would be ignored: it is refused.
given   := $(foreach v,$(.VARIABLES),$(if $(findstring command,$(origin $v)),$v))
keys    := labels reference train seed name rule
dotted  := $(foreach n,base $(POLICIES) $(call value_or,ROWS,) $(basename $(notdir $(labels))),$(keys:%=$n.%))
unknown := $(if $(given),$(shell pipelines/unknown-variable '$(given)' '$(dotted)' $(MAKEFILE_LIST)))
$(if $(unknown),$(error $(unknown)))
