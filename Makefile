# Five words run the project: make setup | demo | test | check | up. Nothing is asked of a machine but Python and make.

PYTHON ?= python3
STATE_DIR ?= .heliograph
WORKERS ?= 3
BIN := .venv/bin
RIVALS := apprise celery clients redis streams
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test unit slow browser faults bench bench-full check lock up down clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Build .venv from requirements.lock (again only when the lock or pyproject.toml change)

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no $(PYTHON); give a Python 3.11 or newer: make PYTHON=... setup" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12 setup" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo "make: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv, or give PYTHON=" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## Start everything, send examples/requests.jsonl, account for every message, stop
	$(BIN)/heliograph demo --state-dir $(STATE_DIR)

test: $(READY) ## All tests but the slow ones
	$(BIN)/python -m pytest -m "not slow and not browser" -n $(WORKERS) --dist loadfile

unit: $(READY) ## Tests that need nothing running, in seconds
	$(BIN)/python -m pytest tests/unit

slow: $(READY) ## The tests that take more than half a minute each
	$(BIN)/python -m pytest -m "slow and not browser"

browser: $(READY) ## The example page in Chromium; skipped where none is installed
	$(BIN)/python -m pytest -m browser -rs

faults: $(READY) ## The long storm: 200 kills, 20 zombies, every provider mode, 20,000 notifications; receipts, webhooks and bounces under kills (SEED= replays one)
	$(BIN)/python -m tests.faults.storm $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.faults.receipts $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.faults.hooks $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m pytest -q tests/integration/test_bounces.py

bench: $(READY) ## Every case of the harness in its short form: ten minutes on two idle cores (CASES="enrich push" for some)
	$(BIN)/python -m bench $(CASES)

bench-full: $(READY) ## The same at full size with five rounds: hours
	$(BIN)/python -m bench --full $(CASES)

check: $(READY) ## Format, lint, types, imports, texts of columns, containers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m sinks.columns_page
	$(BIN)/yamllint --strict docker-compose.yml deploy .yamllint .hadolint.yaml .pre-commit-config.yaml .github && $(BIN)/hadolint --config .hadolint.yaml deploy/Dockerfile

lock: ## Resolve pyproject.toml into requirements.lock again, and what rivals need (needs uv)
	@command -v uv >/dev/null || { echo "make: uv is needed to resolve: see its own installation page" >&2; exit 1; }
	uv pip compile --universal --generate-hashes --no-emit-index-url --all-extras -p 3.11 pyproject.toml -o requirements.lock
	cd bench/rivals && for name in $(RIVALS); do \
	  uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --no-annotate -p 3.11 $$name.in -o $$name.txt || exit 1; done

up: $(READY) ## Start Kafka, PostgreSQL, ClickHouse, the vendor simulator and every role in the background
	$(BIN)/heliograph up --detach --state-dir $(STATE_DIR)

down: ## Stop what `make up` started
	@if [ -x $(BIN)/heliograph ]; then $(BIN)/heliograph down --state-dir $(STATE_DIR); fi

clean: down ## Stop, and remove the environment, the state and every cache of this directory
	rm -rf .venv $(STATE_DIR) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
