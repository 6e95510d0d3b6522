#!/usr/bin/env bash
# Two network namespaces play two hosts, each with its own name and address; sums travel over TCP. Needs root.
source "$(dirname "$0")/lib.sh"
need mpirun
need ip
[[ $EUID == 0 ]] || fail "namespaces need root"
hosts=(bdpo-h0 bdpo-h1)

down() {
    for host in "${hosts[@]}"; do
        ip netns pids "$host" 2>/dev/null | xargs -r kill
        ip netns del "$host" 2>/dev/null
        rm -rf "/etc/netns/$host"
    done
}
for i in 0 1; do
    host=${hosts[i]}
    ip netns add "$host"
    ip -n "$host" link set lo up
    mkdir -p "/etc/netns/$host"
    printf '127.0.0.1 localhost\n198.18.77.1 %s\n198.18.77.2 %s\n' "${hosts[@]}" >"/etc/netns/$host/hosts"
done
ip link add bdpo-v0 netns "${hosts[0]}" type veth peer name bdpo-v1 netns "${hosts[1]}"
for i in 0 1; do
    ip -n "${hosts[i]}" addr add "198.18.77.$((i + 1))/24" dev "bdpo-v$i"
    ip -n "${hosts[i]}" link set "bdpo-v$i" up
done

# Stands where ssh would. The name matters: two hosts of one name are one to MPI.
cat >"$work/on" <<'EOF'
#!/bin/sh
host=$1
shift
exec ip netns exec "$host" unshare --uts sh -c 'hostname "$0"; eval "$1"' "$host" "$*"
EOF
chmod +x "$work/on"
both() {
    "$work/on" "${hosts[0]}" mpirun --host "${hosts[0]}:1,${hosts[1]}:1" -n 2 --map-by node --bind-to none \
        --mca plm rsh --mca plm_rsh_agent "$work/on" --mca oob_tcp_if_include 198.18.77.0/24 \
        --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include 198.18.77.0/24 "$@"
}

labels
train
[[ $(both hostname | sort | xargs) == "${hosts[*]}" ]] || fail "the two do not meet"
mpi 2 "${command[@]}" -o "$work/one-host"
both "${command[@]}" -o "$work/two-hosts"
same one-host two-hosts
say "two hosts over TCP: all good, $((SECONDS - took)) s"
