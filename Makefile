# make        says what there is
# make test   installs what the tests need, and runs them all
# make lint   formatting, clippy, licences and sources of dependencies, the tidy rules

SHELL := /bin/bash
DATA := target/data
TOOLS := target/tools
CARGO_DENY_VERSION := 0.20.2
# How much more a soak takes than a test does.
SEEDS ?= 500
KILLS ?= 50
CASES ?= 20000
ROUNDS ?= 10
SIM_SEEDS ?= 1000000

STEP = @printf '\n==> %s\n'

.DEFAULT_GOAL := help
.PHONY: help needs data test lint fmt tidy deny bench cluster sim soak sabotage autobahn

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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
	@scripts/sabotage.py --check

deny: ## Check licences, sources and bans of dependencies
	$(STEP) 'cargo deny check bans licenses sources'
	@command -v cargo-deny >/dev/null || test -x $(TOOLS)/bin/cargo-deny || \
	  { echo 'building cargo-deny once, into $(TOOLS)'; \
	    cargo install --quiet --locked cargo-deny@$(CARGO_DENY_VERSION) --root $(TOOLS); }
	@PATH="$$PATH:$(CURDIR)/$(TOOLS)/bin" cargo-deny --locked check --hide-inclusion-graph bans licenses sources

cluster: ## Run Redis and three gateways on this machine, and print a tour
	@scripts/needs.sh
	cargo build --release --locked -p tidegate
	@scripts/cluster.sh

bench: ## Run the benchmarks; print what they found, as ratios and beside what is to be reached (docs/PERFORMANCE.md)
	rm -rf target/criterion
	cargo bench --workspace --locked
	$(STEP) 'times the baseline'
	@scripts/bench_ratios.py
	$(STEP) 'histories a second, on one core'
	@scripts/needs.sh soak
	@simulator=$$(scripts/simulator.sh) && for round in 1 2 3; do TIDEGATE_SIM_SEEDS=5000 \
	  taskset -c 0 $$simulator --exact every_promise_holds_in_every_history --nocapture | grep histories; done

sim: ## Tell the story of a simulated history: make sim SEED=n
	@cargo run --quiet --locked -p sim --example replay -- $(SEED)

soak: data ## Run the contract suite with SEEDS seeds, SIM_SEEDS simulated histories, the wire's properties with CASES cases, and the sabotage
	$(STEP) 'the simulator, $(SIM_SEEDS) seeds'
	@scripts/needs.sh soak
	simulator=$$(scripts/simulator.sh) && TIDEGATE_SIM_SEEDS=$(SIM_SEEDS) $$simulator --nocapture
	$(STEP) 'the contract suite, $(SEEDS) seeds, $(KILLS) kills'
	TIDEGATE_CONTRACT_SEEDS=$(SEEDS) TIDEGATE_CONTRACT_KILLS=$(KILLS) cargo test --release --locked -p tidegate --test contract -- --nocapture
	$(STEP) 'the wire, $(CASES) cases a property'
	PROPTEST_CASES=$(CASES) cargo test --release --locked -p tidegate-protocol -p tidegate-client
	$(STEP) 'the cluster: 20,000 spaces on a node, and one that stands still for a minute'
	CLUSTER_SPACES=20000 CLUSTER_FROZEN_SECONDS=60 cargo test --release --locked -p tidegate --test cluster -- --nocapture
	$(STEP) 'the sockets, $(ROUNDS) times'
	for round in $$(seq $(ROUNDS)); do cargo test --release --locked -p tidegate --test e2e || exit 1; done
	@$(MAKE) --no-print-directory sabotage

sabotage: ## Cut one rule at a time out of a copy of the tree, and see its test fail
	$(STEP) 'sabotage'
	scripts/sabotage.py

autobahn: ## Have Autobahn's cases judge the frames, beside plain tokio-tungstenite (wants Python 2.7: PYTHON27=path)
	$(STEP) 'autobahn'
	scripts/autobahn.py $(if $(PYTHON27),--python $(PYTHON27))
