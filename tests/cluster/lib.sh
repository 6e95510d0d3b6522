# What the scripts share. They are started by `make test-cluster`, or by hand:
#
#   BIN=target/mpi STEPS=40 tests/cluster/mpirun.sh        BIN holds the programs, `train` built with --features mpi
#
# Everything lies in one temporary folder, and what was started is stopped by its process id.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
BIN=$(realpath "${BIN:?the folder with the programs, train built with --features mpi}")
# The mini world takes minutes; SMALL=1 takes a model of a few thousand weights, and seconds.
SMALL=${SMALL:-}
STEPS=${STEPS:-40}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
mini=$PWD/pipelines/mini
work=$(mktemp -d)
took=$SECONDS

down() { :; }
trap 'code=$?; trap - ERR; set +e; down; rm -rf "$work"; exit $code' EXIT
trap 'exit 143' TERM INT
trap 'echo "cluster: FAILED in line $LINENO: $BASH_COMMAND" >&2' ERR

say() { echo "cluster: $*"; }
fail() { echo "cluster: FAILED: $*" >&2; exit 1; }
# A tool that must be here.
need() { command -v "$1" >/dev/null || fail "$1 is missing; \`make test-cluster\` installs it"; }

# The labels of a few pairs, by people's choice; the other pairs have none and are left out.
labels() {
    "$BIN/score" "$mini/pairs.parquet" --models "$mini/scorers" --metrics aesthetic --shard 0/8 -q -o "$work/scores"
    "$BIN/vote" "$work/scores/part-00000-of-00008.parquet" --rule human -q -o "$work/labels.parquet"
}

# The command line of the run that is repeated everywhere: 32 pairs a step.
train() {
    if [[ $SMALL ]]; then
        model=(--base "$PWD/tests/fixtures/oracle/base" --resolution 16 --beta_dpo 200)
    else
        model=(--base "$mini/base" --resolution 64 --beta_dpo 5000)
    fi
    command=("$BIN/train" "$mini/pairs.parquet" --labels "$work/labels.parquet" "${model[@]}" --threads 1 -q
        --max_train_steps "$STEPS" --train_batch_size 16 --gradient_accumulation_steps 2 --learning_rate 1e-5
        --lr_warmup_steps $((STEPS * 3 / 4)) --refresh-every $((STEPS / 2)) --drift_every 0)
}

# How many processes, and how they are pinned, is the caller's.
mpi() {
    local n=$1
    shift
    mpirun --oversubscribe --bind-to none --mca btl self,vader -n "$n" "$@"
}

weights() { echo "$work/$1/unet/diffusion_pytorch_model.safetensors"; }
losses() { sed -n 's/.*"loss":\([^,]*\),.*/\1/p' "$work/$1/log.jsonl"; }
# Two runs are the same to the last bit.
same() {
    cmp "$(weights "$1")" "$(weights "$2")" || fail "$1 and $2 have other weights"
    cmp <(losses "$1") <(losses "$2") || fail "$1 and $2 have other losses"
    say "$1 and $2: the same to the last bit"
}

# Runs what must be refused: a non-zero exit, and one sentence of `train` with these words in it.
refuses() {
    local words=$1 code=0
    shift
    "$@" >"$work/said" 2>&1 </dev/null || code=$?
    [[ $code != 0 ]] || fail "not refused: $*"
    [[ $(grep -c '^train: ' "$work/said") == 1 ]] || fail "not one sentence: $(cat "$work/said")"
    grep -q "^train: .*$words" "$work/said" || fail "says something else than '$words': $(cat "$work/said")"
    say "refused with $code: $(grep '^train: ' "$work/said")"
}

# Waits for a file with so many lines.
lines() {
    for ((i = 0; i < 3000; i++)); do
        [[ -f $1 && $(wc -l <"$1") -ge $2 ]] && return
        sleep 0.1
    done
    fail "$1 does not get $2 lines"
}
