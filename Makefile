# Everything a developer types. `make` alone prints the list.
#
# POSIX sh, GNU make 4.3 or newer, from the root of the repository.

MAKEFLAGS += --no-print-directory
export PATH := $(PATH):$(HOME)/.cargo/bin

CARGO ?= cargo
# Extra flags for every cargo command, such as CARGO_FLAGS=--offline.
CARGO_FLAGS ?=
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
HERCULES := $(TARGET_DIR)/release/hercules
# Shown by `hercules version`.
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
# Flags of `hercules dev`, such as DEV="--chunkservers 5".
DEV ?=
# Of the tests that cut the power: file systems, and how many states of each to look at.
FS ?= ext4 xfs
STATES ?= 1000
# Flags of both tests on real disks, such as REAL_DISKS="--seed 7".
REAL_DISKS ?=
# Flags of every `hercules bench`, such as BENCH="--count 64".
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: help run test campaigns crash canaries nightly verify fix bench bench-engine power-cut disk-faults sim sim-canaries store-driver release tools

help: ## this list
	@echo "Usage: make TARGET"
	@echo
	@awk -F ':.*## ' '/^[a-zA-Z0-9_-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)



run: release ## start master, three chunkservers and gateway here; Ctrl-C stops them (DEV="flags")
	@exec $(HERCULES) dev $(DEV)

test: tools ## run every test
	$(CARGO) test --workspace --locked $(CARGO_FLAGS)
	@$(MAKE) power-cut STATES=25
	@$(MAKE) disk-faults
	@docker/test/compose.sh

# The campaigns of the chunk store on the simulated disk: crash states, random lives, planted bugs.
# TIER is short, ci or night; the optimised build is the one that `make test` has made.
TIER ?= ci
STORE_TEST = $(CARGO) test --workspace --locked $(CARGO_FLAGS) --lib -- --nocapture --test-threads 1

campaigns: tools
	STORE_TIER=$(TIER) STORE_TURN=$$(($$(date +%s) / 86400)) $(STORE_TEST) $(CRASH_TESTS) every_planted_bug_is_found

CRASH_TESTS = every_crash_at_every_write whatever_ends_a_process what_once_failed

crash: tools ## crash the store at every write of every kind of operation (SEED=n: one script and one random life again)
	STORE_TIER=$(TIER) $(if $(SEED),STORE_SEED=$(SEED)) $(STORE_TEST) $(CRASH_TESTS)

canaries: tools ## plant every bug, and fail when the tests do not find one (CANARY=D9,E1: only these)
	STORE_TIER=$(if $(CANARY),night,$(TIER)) $(if $(CANARY),CANARY=$(CANARY)) $(STORE_TEST) every_planted_bug_is_found

# The simulation of a whole cluster. TIER is short, ci or night, as above.
SIM_TEST = $(CARGO) test -p servers --locked $(CARGO_FLAGS) --lib -- --nocapture --test-threads 1

sim: tools ## a whole cluster in simulation: 20,000 seeds, or SEEDS=n, or one again with SEED=0x1f
	SIM_TIER=$(TIER) $(if $(SEEDS),SIM_SEEDS=$(SEEDS)) $(if $(SEED),SIM_SEED=$(SEED)) $(if $(ALL),SIM_ALL=1) $(SIM_TEST) simulation::campaign

sim-canaries: tools ## plant every bug of the protocol, and fail when the simulation does not find one (CANARY=P3,P5)
	SIM_TIER=$(TIER) $(if $(CANARY),CANARY=$(CANARY)) $(SIM_TEST) every_planted_bug_of_the_protocol

nightly: tools ## the campaigns of the store at full length, and power cuts on real file systems: hours
	@$(MAKE) campaigns TIER=night
	@$(MAKE) sim TIER=night
	@$(MAKE) sim-canaries TIER=night
	@$(MAKE) power-cut
	@$(MAKE) disk-faults

verify: tools ## check format, lints, documentation, dependencies and layers
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked $(CARGO_FLAGS) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked $(CARGO_FLAGS)
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install cargo-deny --locked
	$(CARGO) deny --locked check bans licenses sources
	@if $(CARGO) deny fetch db >/dev/null 2>&1; then $(CARGO) deny --locked check advisories; \
	else echo "SKIPPED: advisories, the database of known vulnerabilities cannot be reached from here"; fi
	$(CARGO) test -p wire --test tidy --locked $(CARGO_FLAGS)

fix: tools ## format, and apply what the lints suggest
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged $(CARGO_FLAGS)
	$(CARGO) fmt --all

bench: release ## measure a temporary cluster on this machine: put, get, append, and its limits (BENCH="flags")
	@HERCULES=$(HERCULES) DIR=$(TARGET_DIR) sh benches/run.sh $(BENCH)

bench-engine: tools ## measure the chunk store beside fio and a bare io_uring loop (BENCH="flags", such as --quick)
	@command -v fio >/dev/null || echo "fio is not installed: its column stays empty (apt-get install fio)" >&2
	$(CARGO) build --profile bench-engine --locked -p benches --bin bench-engine $(CARGO_FLAGS)
	@$(TARGET_DIR)/bench-engine/bench-engine --dir $(TARGET_DIR) --out $(TARGET_DIR)/bench $(BENCH)

power-cut: store-driver ## cut the power under the chunk store on real file systems (FS="ext4 xfs" STATES=1000)
	@set -e; for fs in $(FS); do \
	  $(PYTHON) engine/real-disks/power_cut.py $(STORE_DRIVER) --fs $$fs --states $(STATES) $(REAL_DISKS); \
	  $(PYTHON) engine/real-disks/power_cut.py $(STORE_DRIVER) --fs $$fs --states 25 --canary D7; \
	done

disk-faults: store-driver ## break, fill and rot disks under the chunk store (FS="ext4 xfs")
	@$(PYTHON) engine/real-disks/disk_faults.py $(STORE_DRIVER) --fs $(FS) $(REAL_DISKS)

STORE_DRIVER := $(TARGET_DIR)/debug/examples/store_driver
# Where there is no Python: says so, and is content.
PYTHON := $(shell command -v python3 || echo "echo SKIPPED: no python3 for")

store-driver: tools
	@$(CARGO) build -q -p engine --example store_driver --features canary --locked $(CARGO_FLAGS)

release: tools ## build the optimised binary
	HERCULES_COMMIT=$(COMMIT) $(CARGO) build --release --locked -p cli $(CARGO_FLAGS)

# What a build needs, installed when it is missing. Silent when all is there.
tools:
	@missing=""; for tool in gcc git; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then \
	  echo "missing:$$missing"; \
	  if ! command -v apt-get >/dev/null; then echo "install them with your package manager, then repeat" >&2; exit 1; fi; \
	  sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -q && $$sudo apt-get install -y -q --no-install-recommends $$missing libc6-dev; \
	fi
	@if ! command -v $(CARGO) >/dev/null; then \
	  if ! command -v curl >/dev/null; then echo "install Rust from https://rustup.rs, then repeat" >&2; exit 1; fi; \
	  echo "Rust is missing: installing it with rustup into $(HOME)/.cargo"; \
	  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --no-modify-path; \
	fi

# Targets for containers.
-include docker/compose.mk
