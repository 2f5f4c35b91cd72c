# What a person runs here. `make` alone lists it. Options for a program go through ARGS, e.g. make demo ARGS=--help

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo demo-check test test-full lint bench bench-micro layout setup test-services
MAKEFLAGS += --no-print-directory

ARGS ?=
# Where Debian keeps nft and ip for people who are not root, and where rustup puts cargo.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin:$(HOME)/.cargo/bin
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# In continuous integration Cargo.lock is the truth; a developer who adds a dependency may let cargo update it.
CARGO_FLAGS := $(if $(CI),--locked)
SETUP := deploy/setup/setup.sh
AS_ROOT := deploy/setup/as-root.sh
# e2e tests make network namespaces and so run as root; all other tests run as whoever runs make.
TEST_RUNNER := --config 'target."cfg(all())".runner=["$(CURDIR)/$(AS_ROOT)", "--test"]'
DEMO_PACKAGES := -p weft -p weft-proxy -p weft-control-plane -p weft-demo-order
# The demo's services that are not Rust have tests of their own, which need no mesh.
NODE_TESTS := $(wildcard deploy/demo/shop/*/*.test.js)
PYTHON_TESTS := $(wildcard deploy/demo/shop/*/test_*.py)

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Options: make demo ARGS='--help', make bench ARGS=--quick, make test ARGS='-p weft-core'"

# $(1) what `weft` is called with
define run-demo
	@$(SETUP) build demo
	@$(AS_ROOT) --check
	cargo build --release $(CARGO_FLAGS) $(DEMO_PACKAGES)
	@WEFT_BIN=$(TARGET)/release $(AS_ROOT) $(TARGET)/release/weft $(1) $(ARGS)
endef

demo: ## Bring up a small shop in the mesh, with a live view; Ctrl-C takes it down (needs root, asks sudo)
	$(call run-demo,demo)

demo-check: ## Run the same demo without a terminal and check every step (needs root, asks sudo)
	$(call run-demo,demo --check)

# $(1) environment, $(2) arguments for the test programs; ARGS replaces --workspace and leaves out the shop's services.
define run-tests
	@$(SETUP) build test
	@$(AS_ROOT) --check
	cargo build --workspace --all-targets $(CARGO_FLAGS)
	WEFT_BIN=$(TARGET)/debug $(1) cargo test --no-fail-fast $(TEST_RUNNER) $(CARGO_FLAGS) $(or $(ARGS),--workspace) $(2)
	$(if $(ARGS),,@$(MAKE) test-services)
endef

test: ## Unit, integration and end-to-end tests (end-to-end needs root, asks sudo)
	$(call run-tests)

test-full: ## The same with the slow tests (#[ignore]), more cases per property, and bench-micro
	$(call run-tests,PROPTEST_CASES=4096,-- --include-ignored)
	$(if $(ARGS),,@$(MAKE) bench-micro)

test-services:
	$(if $(NODE_TESTS),node --test --test-reporter=spec $(NODE_TESTS))
	$(if $(PYTHON_TESTS),set -e; for file in $(PYTHON_TESTS); do .tools/venv/bin/python -B $$file; done)

lint: ## Formatting, clippy with warnings as errors, licences and duplicate or forbidden crates
	@$(SETUP) build lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(CARGO_FLAGS) -- -D warnings
	@deploy/setup/deny.sh

bench: ## Weft, Envoy and a bare relay side by side; writes bench/out/latest.json (ARGS=--quick: 3 minutes)
	@$(SETUP) build bench
	cargo build --release $(CARGO_FLAGS) -p weft-proxy -p weft-control-plane -p weft-bench
	@WEFT_BIN=$(TARGET)/release $(TARGET)/release/weft-bench $(ARGS)

# The benches of all packages that have one named micro.
bench-micro: ## Instructions per operation of the data path's parts; fails if one grew (ARGS=--accept: new baseline)
	@$(SETUP) build test
	cargo bench --profile micro $(CARGO_FLAGS) --workspace --bench micro -- $(ARGS)

layout: ## Find anew which functions a proxy executes, for proxy/layout.ld (some minutes)
	@$(SETUP) build test bench
	cargo build --profile profiling $(CARGO_FLAGS) -p weft-proxy -p weft-control-plane -p weft-bench
	@python3 bench/layout.py $(TARGET)/profiling proxy/layout.ld

setup: ## Install what all targets need, and do nothing else
	@$(SETUP) build lint test demo bench
