#!/usr/bin/env bash
# Training as 1, 2 and 4 processes of one host: equal losses, equal weights, a dead process, another number of processes.
source "$(dirname "$0")/lib.sh"
need mpirun
labels
train

"${command[@]}" -o "$work/alone"
mpi 1 "${command[@]}" -o "$work/one"
same alone one
for n in 2 4; do
    mpi $n "${command[@]}" -o "$work/of-$n"
    same of-$n alone
done

# One of four is killed in the middle: all end. Two go on from the last checkpoint.
half=$((STEPS / 2))
mpi 4 "${command[@]}" -o "$work/killed" --checkpointing_steps $((half > 2 ? half - 2 : 1)) 2>"$work/said" &
job=$!
lines "$work/killed/log.jsonl" "$half"
kill -9 "$(pgrep -P "$(pgrep -P "$job")" | tail -1)"
code=0
wait "$job" || code=$?
[[ $code != 0 ]] || fail "a process was killed and mpirun ended with 0"
[[ ! -e $(weights killed) ]] || fail "a process was killed and the run was finished"
say "one of four killed: mpirun ends with $code"
mpi 2 "${command[@]}" -o "$work/killed" --resume_from_checkpoint latest
same killed alone

# What must not begin.
refuses 'cannot be divided among 3 processes' mpi 3 "${command[@]}" -o "$work/no"
cp "$work/labels.parquet" "$work/other.parquet"
"$BIN/vote" "$work/scores/part-00000-of-00008.parquet" --rule single:aesthetic -q -o "$work/other.parquet"
others=("${command[@]/labels.parquet/other.parquet}")
refuses 'process 1 differs from process 0 in its data or labels' \
    mpirun --oversubscribe -n 1 "${command[@]}" -o "$work/no" : -n 1 "${others[@]}" -o "$work/no"
refuses 'process 1 differs from process 0 in its models' \
    mpirun --oversubscribe -n 1 "${command[@]}" -o "$work/no" : -n 1 "${command[@]}" --policy "$work/alone" -o "$work/no"
[[ ! -e $work/no/unet ]] || fail "a refused run has written weights"

# Peak memory: a process of several needs what one alone needs, one bucket of gradients (25 MB), and what MPI takes for being there,
# which a model of a few thousand weights shows: there is nothing else in it that could grow. The first process is asked, which also writes
# the checkpoints; the others need less.
memory() { sed -n 's/.*"memory_mib":\([^,}]*\).*/\1/p' "$work/$1/log.jsonl" | tail -1; }
SMALL=1 STEPS=4 train
"${command[@]}" -o "$work/small-alone"
mpi 1 "${command[@]}" -o "$work/small-one"
train
init=$(awk "BEGIN { print $(memory small-one) - $(memory small-alone) }")
for run in one of-2 of-4; do
    say "$run: peak memory $(memory $run) MiB, alone $(memory alone), MPI itself $init"
    awk "BEGIN { exit !($(memory $run) <= $(memory alone) + 25e6 / 1048576 + $init) }" ||
        fail "a process of $run needs more than one alone, a bucket of 25 MB and MPI itself"
done

# Time: what `mpirun -n 1` costs a step. Runs take turns, each first every other time; a turn compares the medians of its two runs
# without their first steps. On a machine that others use a turn is off by some percent either way, so what fails is not the mean of
# the turns above 2 %, but the mean less twice its standard error: a cost that is surely more. Steps of the small model take
# milliseconds, too few to tell.
if [[ ! $SMALL ]]; then
    STEPS=6 train
    median() { tail -n +2 "$work/turn-$1/log.jsonl" | sed -n 's/.*"pairs_per_second":\([^,]*\),.*/\1/p' | sort -g | awk '{ x[NR] = $1 } END { print x[int((NR + 1) / 2)] }'; }
    for turn in 1 2 3 4 5 6; do
        ((turn % 2)) || mpi 1 "${command[@]}" -o "$work/turn-$turn-one"
        "${command[@]}" -o "$work/turn-$turn-alone"
        ((turn % 2 == 0)) || mpi 1 "${command[@]}" -o "$work/turn-$turn-one"
        echo "$(median $turn-alone) $(median $turn-one)"
    done >"$work/turns"
    read -r costs error turns < <(awk '{ x = 100 * ($1 / $2 - 1); sum += x; squares += x * x; all = all sprintf(" %.2f", x) }
        END { mean = sum / NR; printf "%.2f %.2f %s\n", mean, sqrt((squares / NR - mean * mean) / (NR - 1)), all }' "$work/turns")
    say "mpirun -n 1 costs $costs % of a step, give or take $error (turns: $turns)"
    awk "BEGIN { exit !($costs - 2 * $error <= 2) }" || fail "mpirun -n 1 costs more than 2 % of a step"
fi
say "mpirun: all good, $((SECONDS - took)) s"
