#!/usr/bin/env bash
# How the containers of the cluster are.
#
#     cluster.sh wait      until all are healthy; fails with the log of one that is not, after HERCULES_WAIT s (180)
#     cluster.sh health    one line each: state, and whether its service answers, with the time that took
set -euo pipefail

services=(hercules-master hercules-chunkserver1 hercules-chunkserver2 hercules-chunkserver3 hercules-gateway)

state() {
    local state
    state=$(docker inspect -f '{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}' "$1" 2>/dev/null) ||
        state=absent
    echo "$state"
}

wait_healthy() {
    local deadline=$((SECONDS + ${HERCULES_WAIT:-180})) service waited
    for service in "${services[@]}"; do
        waited=no
        until [ "$(state "$service")" = "running healthy" ]; do
            if [ $SECONDS -ge $deadline ]; then
                echo "$service is $(state "$service"); its last lines:" >&2
                docker logs --tail 30 "$service" >&2 || true
                return 1
            fi
            [ $waited = yes ] || echo "waiting for $service (the first check comes after one interval)"
            waited=yes
            sleep 1
        done
    done
    echo "all ${#services[@]} containers are healthy"
}

health() {
    local service started answer failed=0
    for service in "${services[@]}"; do
        started=$(date +%s%N)
        if docker exec "$service" hercules health >/dev/null 2>&1; then
            answer="answers in $((($(date +%s%N) - started) / 1000000)) ms"
        else
            answer="does not answer"
            failed=1
        fi
        printf '%-24s %-20s %s\n' "$service" "$(state "$service")" "$answer"
    done
    return $failed
}

case ${1:-} in
wait) wait_healthy ;;
health) health ;;
*)
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 64
    ;;
esac
