# make        says what there is
# make test   installs what the tests need, and runs them all
# make lint   formatting, clippy, licences and sources of dependencies, the tidy rules

SHELL := /bin/bash
DATA := target/data
TOOLS := target/tools
CARGO_DENY_VERSION := 0.20.2
# Seeds for the store's contract suite: a soak takes many more than a test does.
SEEDS ?= 500

STEP = @printf '\n==> %s\n'

.DEFAULT_GOAL := help
.PHONY: help needs data test lint fmt tidy deny bench soak

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

needs: ## Install by apt what the tests need (without root: say what is missing)
	@scripts/needs.sh

data: $(DATA)/.done ## Fetch the real data that tests read

# Fetched from npm once, pinned, never skipped.
$(DATA)/.done:
	mkdir -p $(DATA)
	cd $(DATA) && npm pack --silent vega-datasets@3.2.1 msgpack-test-suite@1.0.0
	cd $(DATA) && for p in vega-datasets-3.2.1 msgpack-test-suite-1.0.0; do \
	  mkdir -p $${p%-*} && tar xzf $$p.tgz -C $${p%-*} --strip-components=1; done
	touch $@

test: ## Install what the tests need, and run them all
	$(STEP) 'what the tests need'
	@$(MAKE) --no-print-directory needs
	$(STEP) 'real data, in $(DATA)'
	@$(MAKE) --no-print-directory data
	$(STEP) 'cargo test --workspace'
	cargo test --workspace --locked

lint: ## Check formatting, lints, dependencies and the tidy rules
	$(STEP) 'cargo fmt --check'
	cargo fmt --all --check
	@$(MAKE) --no-print-directory tidy
	$(STEP) 'cargo clippy'
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@$(MAKE) --no-print-directory deny

fmt: ## Format the sources
	cargo fmt --all

tidy: ## Check the rules that no other tool checks
	$(STEP) 'tidy'
	@scripts/tidy.sh

deny: ## Check licences, sources and bans of dependencies
	$(STEP) 'cargo deny check bans licenses sources'
	@command -v cargo-deny >/dev/null || test -x $(TOOLS)/bin/cargo-deny || \
	  { echo 'building cargo-deny once, into $(TOOLS)'; \
	    cargo install --quiet --locked cargo-deny@$(CARGO_DENY_VERSION) --root $(TOOLS); }
	@PATH="$$PATH:$(CURDIR)/$(TOOLS)/bin" cargo-deny --locked check --hide-inclusion-graph bans licenses sources

bench: ## Run the benchmarks
	cargo bench --workspace --locked

soak: ## Run the store's contract suite with SEEDS seeds (500)
	TIDEGATE_CONTRACT_SEEDS=$(SEEDS) cargo test --release -p tidegate --locked --test contract -- --nocapture
