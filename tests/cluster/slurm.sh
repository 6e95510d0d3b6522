#!/usr/bin/env bash
# A Slurm of four nodes on the loopback interface of this machine: rows as an array and through make, training under srun.
source "$(dirname "$0")/lib.sh"
for tool in slurmctld slurmd munged srun sbatch; do need $tool; done

# Everything of it lies in $slurm, with a key of its own; nothing in /etc.
slurm=$work/slurm
down() {
    for pid in "$slurm"/slurmd.*.pid "$slurm"/slurmctld.pid "$slurm"/munge/pid; do
        [[ -s $pid ]] && kill "$(cat "$pid")" && tail --pid="$(cat "$pid")" -f /dev/null
    done
} 2>/dev/null
mkdir -p "$slurm"/{munge,ctld,log} "$slurm"/{spool,tmp}.n{1..4}
chmod 700 "$slurm/munge"
(umask 077 && head -c 1024 /dev/urandom >"$slurm/munge/key")
host=$(hostname -s)
cat >"$slurm/slurm.conf" <<EOF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$slurm/munge/socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$slurm/ctld
SlurmdSpoolDir=$slurm/spool.%n
SlurmctldPidFile=$slurm/slurmctld.pid
SlurmdPidFile=$slurm/slurmd.%n.pid
SlurmctldLogFile=$slurm/log/slurmctld.log
SlurmdLogFile=$slurm/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TmpFS=$slurm/tmp.%n
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
KillWait=5
NodeName=n[1-4] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17004] CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
echo "CgroupPlugin=cgroup/v1" >"$slurm/cgroup.conf"
export SLURM_CONF=$slurm/slurm.conf
munged --force --socket "$slurm/munge/socket" --key-file "$slurm/munge/key" --pid-file "$slurm/munge/pid" \
    --log-file "$slurm/log/munged.log" --seed-file "$slurm/munge/seed"
slurmctld -f "$SLURM_CONF"
for node in n1 n2 n3 n4; do slurmd -f "$SLURM_CONF" -N $node; done
for ((i = 0; i < 300; i++)); do
    [[ $(sinfo -h -t idle -o %D 2>/dev/null) == 4 ]] && break
    sleep 0.1
done
[[ $(sinfo -h -t idle -o %D) == 4 ]] || fail "the four nodes do not come up"
say "four nodes up after $((SECONDS - took)) s"

# Rows through make: of eight parts one fails by itself once, one is killed with -9. The others stay; make again makes these two.
parts=()
for i in {0..7}; do parts+=("mini/scores.parquet/part-0000$i-of-00008.parquet"); done
rows() {
    local runs=$1
    shift
    make --no-print-directory X=mini BIN="$BIN" RUNS="$runs" SHARDS=8 METRICS=aesthetic SCORE_FLAGS=-q "$@" "${parts[@]/#/$runs/}"
}
cat >"$work/flaky" <<'EOF'
#!/bin/bash
# Runs a command, but part 3 fails and part 5 is killed the first time (`--shard 00003/00008` or `--shard 3/8`).
part=$(grep -oE 'shard 0*[35]/' <<<"$*" | tr -dc 35)
once="$0.$part"
case $part in
3) [[ -e $once ]] || { touch "$once"; exit 3; } ;;
5) [[ -e $once ]] || { touch "$once"; "$@" & sleep 0.2; kill -9 $!; wait $!; exit; } ;;
esac
exec "$@"
EOF
chmod +x "$work/flaky"
rows "$work/local" >/dev/null
if rows "$work/nodes" -k -j8 RUN="srun -Q -N1 -n1 -c1 --mem=200 $work/flaky" >"$work/said" 2>&1 </dev/null; then
    fail "two parts failed and make ended with 0"
fi
left=$(find "$work/nodes/mini/scores.parquet" -name 'part-*.parquet' | wc -l)
[[ $left == 6 ]] || fail "of eight parts with two failing $left are there: $(cat "$work/said")"
missing=$("$BIN/vote" "$work/nodes/mini/scores.parquet" -o "$work/no" 2>&1 || true)
grep -q '2 of 8 parts are missing.*I = 3,5' <<<"$missing" || fail "what is missing is not named: $missing"
rows "$work/nodes" -j8 RUN="srun -Q -N1 -n1 -c1 --mem=200 $work/flaky" >"$work/said" 2>&1 </dev/null
[[ $(grep -c '/score ' "$work/said") == 2 ]] || fail "more than the two missing parts were made: $(cat "$work/said")"
for part in "${parts[@]}"; do cmp "$work/local/$part" "$work/nodes/$part"; done
say "make over srun: 6 of 8 parts, then the two missing, all equal to those made here"

# The same as an array: two of its tasks fail, then these two alone.
array() {
    sbatch --wait --quiet --cpus-per-task=1 --mem=200 --output="$work/array.log" --open-mode=append "$@" </dev/null
}
score=("$BIN/score" "$mini/pairs.parquet" --models "$mini/scorers" --metrics aesthetic --threads 1 -q)
cp "$work/flaky" "$work/flaky-array"
code=0
array --array=0-7 pipelines/slurm/rows.sbatch 8 "$work/flaky-array" "${score[@]}" -o "$work/array" || code=$?
[[ $code != 0 ]] || fail "two tasks of the array failed and sbatch --wait ended with 0"
[[ -e $work/flaky-array.3 && -e $work/flaky-array.5 ]] || fail "tasks 3 and 5 did not fail: $(cat "$work/array.log")"
missing=$("$BIN/vote" "$work/array" -o "$work/no" 2>&1 || true)
grep -q '2 of 8 parts are missing.*I = 3,5' <<<"$missing" || fail "what is missing is not named: $missing"
array --array=3,5 pipelines/slurm/rows.sbatch 8 "$work/flaky-array" "${score[@]}" -o "$work/array" || fail "$(cat "$work/array.log")"
for part in "${parts[@]}"; do cmp "$work/local/$part" "$work/array/${part##*/}"; done
say "sbatch --array=0-7 ended with $code, then --array=3,5: all parts equal to those made here"

# Every row once, as in the table that one process makes of all pairs: score says so of every score, and the labels made of the
# parts and of the table are equal byte for byte up to the footer, which names the files that they were made of.
"${score[@]}" -o "$work/whole.parquet"
"${score[@]}" -o "$work/array" --verify 1000000 >"$work/said" 2>&1 || fail "$(cat "$work/said")"
pages() {
    local footer
    footer=$(tail -c 8 "$1" | head -c 4 | od -An -tu4)
    head -c -$((footer + 8)) "$1"
}
for table in array whole.parquet; do
    "$BIN/vote" "$work/$table" --rule single:aesthetic -q -o "$work/labels-${table%.*}.parquet"
done
[[ $(pages "$work/labels-whole.parquet" | wc -c) -gt 10000 ]] || fail "the labels hold no rows"
cmp <(pages "$work/labels-array.parquet") <(pages "$work/labels-whole.parquet") || fail "the array's rows are others than the table's"
say "the array's rows and scores are those of one table made by one process"

# Training: two tasks under srun are two processes under mpirun, to the last bit.
labels
train
mpi 2 "${command[@]}" -o "$work/mpirun"
srun -Q --mpi=pmix -N2 -n2 "${command[@]}" -o "$work/srun" </dev/null
same mpirun srun
sbatch --wait --quiet --nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --mem=1000 --output="$work/train.log" \
    pipelines/slurm/train.sbatch "${command[@]}" -o "$work/sbatch" </dev/null || fail "$(cat "$work/train.log")"
same mpirun sbatch
refuses 'cannot find each other: start them with .srun --mpi=pmix' srun -Q --mpi=none -N2 -n2 "${command[@]}" -o "$work/no"

# A task that dies ends the step.
srun -Q --mpi=pmix --kill-on-bad-exit=1 -N2 -n2 "${command[@]}" -o "$work/killed" </dev/null >"$work/said" 2>&1 &
job=$!
lines "$work/killed/log.jsonl" 1
kill -9 "$(pgrep -f -- "-o $work/killed" | while read -r pid; do
    grep -qz '^PMIX_RANK=1$' "/proc/$pid/environ" 2>/dev/null && echo "$pid"
done | head -1)"
code=0
wait "$job" || code=$?
[[ $code != 0 ]] || fail "a task was killed and srun ended with 0"
say "one of two tasks killed: srun ends with $code"
say "Slurm: all good, $((SECONDS - took)) s"
