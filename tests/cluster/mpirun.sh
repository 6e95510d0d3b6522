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
refuses 'process 1 has other data or labels than process 0' \
    mpirun --oversubscribe -n 1 "${command[@]}" -o "$work/no" : -n 1 "${others[@]}" -o "$work/no"
refuses 'process 1 has other weights than process 0' \
    mpirun --oversubscribe -n 1 "${command[@]}" -o "$work/no" : -n 1 "${command[@]}" --policy "$work/alone" -o "$work/no"
[[ ! -e $work/no/unet ]] || fail "a refused run has written weights"

memory() { sed -n 's/.*"memory_mib":\([^,}]*\).*/\1/p' "$work/$1/log.jsonl" | tail -1; }
speed() { sed -n 's/.*"pairs_per_second":\([^,]*\),.*/\1/p' "$work/$1/log.jsonl" | sort -g | tail -3 | head -1; }
for run in alone one of-2 of-4; do
    say "$run: peak memory of a process $(memory $run) MiB, third best step $(speed $run) pairs/s"
done
say "mpirun: all good, $((SECONDS - took)) s"
