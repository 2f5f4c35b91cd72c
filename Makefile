# The commands of this repository. `make` alone lists them. ARGS passes options to a program, e.g. make demo ARGS=--help

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo demo-check test test-full fuzz lint bench bench-micro layers layout setup test-services
MAKEFLAGS += --no-print-directory

ARGS ?=
# nft and ip are outside the PATH of ordinary users on Debian, and cargo is in rustup's directory.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin:$(HOME)/.cargo/bin
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# Continuous integration uses Cargo.lock as committed; when a developer adds a dependency, cargo may update it.
CARGO_FLAGS := $(if $(CI),--locked)
SETUP := deploy/setup/setup.sh
AS_ROOT := deploy/setup/as-root.sh
# e2e tests create network namespaces and therefore run as root; all other tests run as the user of make.
TEST_RUNNER := --config 'target."cfg(all())".runner=["$(CURDIR)/$(AS_ROOT)", "--test"]'
DEMO_PACKAGES := -p weft -p weft-demo -p weft-proxy -p weft-control-plane -p weft-demo-order
# The demo's Node and Python services have tests of their own, which need no mesh.
NODE_TESTS := $(wildcard deploy/demo/shop/*/*.test.js)
PYTHON_TESTS := $(wildcard deploy/demo/shop/*/test_*.py)

help: ## Print this list of commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Options: make demo ARGS='--help', make bench ARGS=--quick, make test ARGS='-p weft-core'"

# $(1) arguments of `weft`
define run-demo
	@$(SETUP) build demo
	@$(AS_ROOT) --check
	cargo build --release $(CARGO_FLAGS) $(DEMO_PACKAGES)
	@WEFT_BIN=$(TARGET)/release $(AS_ROOT) $(TARGET)/release/weft $(1) $(ARGS)
endef

demo: ## Run a small shop in the mesh, with a live view; Ctrl-C removes it (needs root, asks sudo)
	$(call run-demo,demo)

demo-check: ## Run the same demo without a terminal and check every step (needs root, asks sudo)
	$(call run-demo,demo --check)

# $(1) environment, $(2) arguments of the test programs; ARGS replaces --workspace and skips the shop's services.
define run-tests
	@$(SETUP) build test
	@$(AS_ROOT) --check
	cargo build --workspace --all-targets $(CARGO_FLAGS)
	WEFT_BIN=$(TARGET)/debug $(1) cargo test --no-fail-fast $(TEST_RUNNER) $(CARGO_FLAGS) $(or $(ARGS),--workspace) $(2)
	$(if $(ARGS),,@$(MAKE) test-services)
endef

test: ## Run unit, integration and end-to-end tests (end-to-end needs root, asks sudo)
	$(call run-tests)

test-full: ## Run all tests, including slow ones (#[ignore]), with more cases per property, bench-micro, and five minutes of each fuzz target
	@$(SETUP) build fuzz
	$(call run-tests,PROPTEST_CASES=4096,-- --include-ignored)
	$(if $(ARGS),,@$(MAKE) bench-micro)
	$(if $(ARGS),,@$(MAKE) fuzz FUZZ_SECONDS=300)

fuzz: ## Fuzz the parsers and codecs, FUZZ_SECONDS=60 each (ARGS=http1_head: one target)
	@$(SETUP) build fuzz
	@fuzz/run.sh --seconds $(or $(FUZZ_SECONDS),60) $(ARGS)

test-services:
	$(if $(NODE_TESTS),node --test --test-reporter=spec $(NODE_TESTS))
	$(if $(PYTHON_TESTS),set -e; for file in $(PYTHON_TESTS); do .tools/venv/bin/python -B $$file; done)

lint: ## Check formatting, clippy (warnings are errors), licences, and duplicate or forbidden crates
	@$(SETUP) build lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(CARGO_FLAGS) -- -D warnings
	@deploy/setup/deny.sh

bench: ## Compare Weft with Envoy and a plain relay; writes bench/out/latest.json (ARGS=--quick: 3 minutes)
	@$(SETUP) build bench
	cargo build --release $(CARGO_FLAGS) -p weft-proxy -p weft-control-plane -p weft-bench
	@WEFT_BIN=$(TARGET)/release $(TARGET)/release/weft-bench $(ARGS)

# The benches of all packages that have one named micro.
bench-micro: ## Count instructions of the data path's parts; fails if one grew (ARGS=--accept: new baseline)
	@$(SETUP) build test
	cargo bench --profile micro $(CARGO_FLAGS) --workspace --bench micro -- $(ARGS)

layers: ## Print the import circles between files of different rooms; fails if there is one
	@cargo run --quiet $(CARGO_FLAGS) -p weft-layers -- core http redirect proxy control-plane cli demo

layout: ## Regenerate proxy/build/layout.ld from the functions that a proxy executes (some minutes)
	@$(SETUP) build test bench
	cargo build --profile profiling $(CARGO_FLAGS) -p weft-proxy -p weft-control-plane -p weft-bench
	@python3 bench/layout.py $(TARGET)/profiling proxy/build/layout.ld

setup: ## Install the requirements of all targets, and do nothing else
	@$(SETUP) build lint test fuzz demo bench
