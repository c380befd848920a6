# Makes one cluster of the nodes that it is given, once: what is a cluster already stays as it is.
set -eu
nodes=""
for host in "$@"; do
    until [ "$(valkey-cli -h "$host" ping 2>/dev/null)" = PONG ]; do
        echo "waiting for $host"
        sleep 1
    done
    if valkey-cli -h "$host" cluster info | grep -q '^cluster_slots_assigned:16384'; then
        echo "$host is in a cluster already"
        exit 0
    fi
    # By address, which is all that CLUSTER MEET takes.
    nodes="$nodes $(valkey-cli -h "$host" config get cluster-announce-ip | tail -n 1):6379"
done
# shellcheck disable=SC2086
exec valkey-cli --cluster create $nodes --cluster-replicas 1 --cluster-yes
