# Everything a newcomer or CI calls. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/
TEST_PROCESSES ?= $(shell expr 2 \* $$(getconf _NPROCESSORS_ONLN)) # most of a test is waiting for real processes
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(RUN)pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

.PHONY: setup
setup: $(VENV)/.ready ## Make the virtual environment with everything in it

.PHONY: demo
demo: setup ## See it work: a pretend shop, the proxy and a stand-in for the vendor
	@exec $(RUN)beacon-proxy demo

.PHONY: demo-cluster
demo-cluster: setup ## The same over a cluster whose parts are killed in turn, and nothing is lost (needs nginx)
	@exec $(RUN)beacon-proxy demo --cluster

.PHONY: test
test: setup ## Run the tests
	$(RUN)pytest -n $(TEST_PROCESSES)

.PHONY: lint
lint: setup ## Check style, types, the direction of imports and what is generated
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy
	$(RUN)lint-imports
	$(RUN)hadolint Dockerfile
	$(RUN)python docs/generate.py --check
	$(RUN)python -m proxy.script.build --check

.PHONY: script
script: setup ## Make the browser script that is served from its source
	$(RUN)python -m proxy.script.build

.PHONY: docs
docs: setup ## Write the generated tables anew
	$(RUN)python docs/generate.py

.PHONY: site
site: setup ## Build the documentation as a site into site/
	$(RUN)pip install --quiet --disable-pip-version-check --group docs
	NO_MKDOCS_2_WARNING=1 $(RUN)mkdocs build --strict --quiet
	@echo "Open site/index.html, or serve the directory."

.PHONY: bench
bench: setup ## Measure against a bare server, in turn (about 20 minutes; needs wrk and nginx)
	$(RUN)python -m benchmarks --keep docs/measured/bench.json

.PHONY: bench-smoke
bench-smoke: setup ## The same for ten seconds: intake and forwarding, so that the benchmarks stay whole
	$(RUN)python -m benchmarks --quick intake forwarding

.PHONY: chaos
chaos: setup ## Break it on purpose: 200 kills, a schedule of faults, a backlog of a million, full disks (about 30 minutes; the last as root)
	$(RUN)python -m tests.chaos

.PHONY: chaos-cluster
chaos-cluster: setup ## Break a cluster on purpose: 100 kills, all brokers away for a minute, every mishap once (about 10 minutes)
	$(RUN)python -m tests.cluster --keep docs/measured/cluster.json

.PHONY: day
day: setup ## Play an operator's day: install, outage, restart, upgrade, dead letters, a new key (5 minutes; needs nginx)
	$(RUN)python -m tests.day

.PHONY: rehearse-docker
rehearse-docker: setup ## Carry out the Dockerfile without Docker, and run what it makes (as root; needs debootstrap)
	$(RUN)python deploy/docker/rehearse.py

.PHONY: wheel
wheel: setup ## Build the wheel into dist/
	rm -rf dist
	$(RUN)python -m build --wheel

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache site
