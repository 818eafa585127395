#!/bin/sh
# Measures a temporary cluster on this machine: starts one, runs every workload against it, stops it.
# HERCULES is the binary, DIR a folder on the disk to be measured; arguments go to every workload.
set -eu

: "${HERCULES:?the binary}" "${DIR:=.}"
out=$(mktemp -d)
cluster=

finish() {
    [ -z "$cluster" ] || { kill "$cluster" 2>/dev/null && wait "$cluster" || true; }
    rm -rf "$out"
}
trap finish EXIT
trap 'exit 130' INT TERM

"$HERCULES" dev --ephemeral --dir "$DIR" --json >"$out/ready" 2>"$out/log" &
cluster=$!
until grep -q '"event":"ready"' "$out/ready" 2>/dev/null; do
    if ! kill -0 "$cluster" 2>/dev/null; then
        cat "$out/log" >&2
        cluster=
        exit 1
    fi
    sleep 0.1
done
HERCULES_MASTER=$(sed -n 's/.*"master":"\([^"]*\)".*/\1/p' "$out/ready" | head -n 1)
HERCULES_CLUSTER_KEY_FILE=$(sed -n 's/.*"cluster_key_file":"\([^"]*\)".*/\1/p' "$out/ready" | head -n 1)
export HERCULES_MASTER HERCULES_CLUSTER_KEY_FILE

for workload in put get append; do
    "$HERCULES" bench "$workload" "$@"
    echo
done
echo "limits of this machine:"
"$HERCULES" bench limits --dir "$DIR"
