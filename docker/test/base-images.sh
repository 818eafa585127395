#!/usr/bin/env bash
# Stand-ins for the two base images of docker/Dockerfile, for machines that reach no image registry.
#
#     base-images.sh          makes those that are absent and prints the names of those it made
#
# debian:bookworm-slim comes from Debian packages by debootstrap; rust:1-bookworm is that, a C compiler, and
# the machine's own Rust toolchain. An image that exists is never replaced, one that can be pulled is pulled. Certificates that the machine
# trusts locally are trusted inside too, so that a build reaches what the machine reaches.
# Needs root, a Docker engine, debootstrap (installed when absent), rustc. Two to four minutes, 2 GB.
set -euo pipefail

base=debian:bookworm-slim
rust=rust:1-bookworm
label=org.hercules.stand-in=yes

say() { echo "base-images: $*" >&2; }

# The real one is better, where it can be had.
absent() {
    ! docker image inspect "$1" >/dev/null 2>&1 && ! timeout 300 docker pull -q "$1" >/dev/null 2>&1
}

make_base() {
    command -v debootstrap >/dev/null || {
        { apt-get -qq update && apt-get -qq install -y --no-install-recommends debootstrap; } >"$work/apt.log" 2>&1 ||
            { tail -20 "$work/apt.log" >&2; return 1; }
    }
    local root=$work/base
    say "making a stand-in for $base"
    debootstrap --variant=minbase bookworm "$root" >"$work/debootstrap.log" 2>&1 ||
        { tail -20 "$work/debootstrap.log" >&2; return 1; }
    # The official image has updates and security fixes as sources too.
    local mirror
    mirror=$(awk '$1 == "deb" { print $2; exit }' "$root/etc/apt/sources.list")
    printf 'deb %s %s main\n' "$mirror" bookworm "$mirror" bookworm-updates \
        "${mirror%/debian}/debian-security" bookworm-security >"$root/etc/apt/sources.list"
    tar -C "$root" -c --one-file-system \
        --exclude=./var/cache/apt/* --exclude=./var/lib/apt/lists/* --exclude=./var/log/* \
        --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* \
        --exclude=./usr/share/doc/* --exclude=./usr/share/man/* --exclude=./usr/share/locale/* . |
        docker import --change 'CMD ["bash"]' --change "LABEL $label" - "$base" >/dev/null
    rm -rf "$root"
    echo "$base"
}

make_rust() {
    say "making a stand-in for $rust"
    local context=$work/rust toolchain
    toolchain=$(readlink -f "$(rustc --print sysroot)")
    mkdir -p "$context/ca" "$context/toolchain"
    cp -a "$toolchain/." "$context/toolchain/"
    rm -rf "$context/toolchain/share/doc"
    cp /usr/local/share/ca-certificates/*.crt "$context/ca/" 2>/dev/null || true
    # The toolchain's own programs, without rustup in front: there is nothing to choose.
    cat >"$context/Dockerfile" <<DOCKERFILE
FROM $base
LABEL $label
COPY ca /usr/local/share/ca-certificates
RUN apt-get update \\
 && apt-get install -y --no-install-recommends ca-certificates gcc g++ libc6-dev make pkg-config git \\
 && update-ca-certificates \\
 && rm -rf /var/lib/apt/lists/*
ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/toolchain/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY toolchain /usr/local/toolchain
RUN cargo --version && rustc --version
DOCKERFILE
    DOCKER_BUILDKIT=0 docker build -q -t "$rust" "$context" >"$work/build.log" 2>&1 ||
        { tail -20 "$work/build.log" >&2; return 1; }
    echo "$rust"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if absent "$base"; then make_base; fi
if absent "$rust"; then make_rust; fi
