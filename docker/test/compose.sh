#!/usr/bin/env bash
# The cluster in containers does what docs/operations.md says: images build, five containers become healthy,
# the gateway answers, 100 MiB come back as they were, and a restart keeps them.
#
#     KEEP_BASE=1    keep the stand-ins for the base images that this run made
#     KEEP=1         keep the cluster when a check fails, to look at it
#
# Skipped, and said so, where no Docker engine answers. Run from anywhere; needs curl, make, bash.
# shellcheck disable=SC2317 # the functions are called through `check`
set -euo pipefail
cd "$(dirname "$0")/../.."

passed=0
failed=0
made_images=()
work=$(mktemp -d)

# Short intervals, and limits that a machine without CAP_SYS_RESOURCE can give.
export HERCULES_HEALTH=3s HERCULES_WAIT=120
HERCULES_MEMLOCK=${HERCULES_MEMLOCK:-$(ulimit -H -l | awk '{ print ($1 == "unlimited" ? -1 : $1 * 1024) }')}
HERCULES_NOFILE=${HERCULES_NOFILE:-$(ulimit -H -n | awk '{ print ($1 == "unlimited" || $1 + 0 > 65536 ? 65536 : $1) }')}
export HERCULES_MEMLOCK HERCULES_NOFILE
gateway=http://localhost:8089

run() {
    # GNU make of a caller must not leak its flags into the one under test.
    env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make --no-print-directory "$@" >>"$work/make.log" 2>&1
}

check() {
    local name=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        echo "ok: $name"
    else
        failed=$((failed + 1))
        echo "FAILED: $name"
        tail -30 "$work/make.log" 2>/dev/null || true
        finish
    fi
}

finish() {
    trap - EXIT
    if [ "$failed" -gt 0 ] && [ "${KEEP:-}" = 1 ]; then
        echo "the cluster is kept: \`make clean\` removes it"
    elif [ -n "${ours:-}" ]; then
        run clean || true
    fi
    if [ "${KEEP_BASE:-}" != 1 ] && [ ${#made_images[@]} -gt 0 ]; then
        docker image rm -f "${made_images[@]}" >/dev/null 2>&1 || true
    fi
    rm -rf "$work"
    echo "compose: $passed passed, $failed failed"
    [ "$failed" -eq 0 ]
    exit
}

skip() {
    rm -rf "$work"
    echo "compose: skipped: $1"
    exit 0
}

five_are_healthy() {
    local healthy
    healthy=$(docker ps --filter health=healthy --format '{{.Names}}' |
        grep -cxE 'hercules-(master|chunkserver[123]|gateway)') && [ "$healthy" -eq 5 ]
}

hardened() {
    local service
    for service in key master chunkserver1 chunkserver2 chunkserver3 gateway; do
        docker inspect -f '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.Config.User}} {{.HostConfig.SecurityOpt}}' \
            "hercules-$service" | grep -q '^true \[ALL\] 10001:10001 .*no-new-privileges.*seccomp' || return 1
    done
}

answers() {
    curl -fsS "$gateway/health" | grep -q '"status":"healthy"' &&
        curl -fsS "$gateway/api/v1/list?path=./" | grep -q '"success":true'
}

# The key is there once for all, only its owner reads it, and only `key` may write to its volume.
has_a_key() {
    [ "$(docker exec hercules-master stat -c '%a %u' /keys/cluster.key)" = "600 10001" ] &&
        ! docker exec hercules-chunkserver1 touch /keys/other 2>/dev/null &&
        docker exec hercules-gateway hercules status --master master:9090 >/dev/null &&
        ! docker exec -e HERCULES_CLUSTER_KEY_FILE= hercules-gateway hercules status --master master:9090 2>/dev/null
}

sum() { sha256sum | cut -d ' ' -f 1; }

goes_in_and_out() {
    head -c $((100 * 1024 * 1024)) /dev/urandom >"$work/in" &&
        curl -fsS -T "$work/in" "$gateway/fs/compose/100MiB" >/dev/null && comes_back
}

comes_back() {
    [ "$(curl -fsS "$gateway/fs/compose/100MiB" | sum)" = "$(sum <"$work/in")" ]
}

comes_up() { run up && five_are_healthy; }

keeps_the_data() { run down && run up && comes_back; }

leaves_nothing() {
    run clean && [ -z "$(foreign)" ] && ! docker network inspect hercules-net >/dev/null 2>&1 &&
        ! docker image inspect hercules-master >/dev/null 2>&1
}

# What bears the cluster's names.
foreign() {
    local name
    for name in hercules-key hercules-master hercules-chunkserver1 hercules-chunkserver2 hercules-chunkserver3 hercules-gateway; do
        docker container inspect "$name" >/dev/null 2>&1 && echo "$name"
    done
    docker volume ls -q --filter name='^hercules_'
}

docker info >/dev/null 2>&1 || skip "no Docker engine answers \`docker info\` here"
docker compose version >/dev/null 2>&1 || docker-compose version >/dev/null 2>&1 ||
    skip "neither \`docker compose\` nor \`docker-compose\` is installed here"
[ -z "$(foreign)" ] || {
    echo "compose: refused: a cluster is here already, and this test would remove it: $(foreign | xargs)"
    exit 1
}

trap 'failed=$((failed + 1)); finish' EXIT
docker/test/base-images.sh >"$work/made"
mapfile -t made_images <"$work/made"
ours=yes
check "make build-all builds the three images" run build-all
check "make up brings five healthy containers" comes_up
check "they run without root, capabilities and a writable root" hardened
check "they share a key, and nothing is said without it" has_a_key
check "the gateway answers /health and lists the root" answers
check "make health finds every service answering" run health
check "100 MiB come back as they went in" goes_in_and_out
check "make down up keeps the data" keeps_the_data
check "make clean leaves nothing behind" leaves_nothing
finish
