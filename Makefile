# Every target sets up what it needs, so `make demo` or `make test` alone is enough on a fresh machine.

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
RUNTIME := .venv/runtime.stamp
DEV := .venv/dev.stamp

.DEFAULT_GOAL := help
.PHONY: help demo test lint format type layers check fuzz bench sweep accuracy latency coverage build clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUNTIME) ## prune the small shipped model and print the table
	$(BIN)/onnxprune demo $(ARGS)

test: check ## all checks and tests; options for pytest: make test ARGS="-k conv"
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: layers ## ruff, its formatter and the order of the rooms
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(DEV) ## rewrite the source in the house style
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

type: $(DEV) ## mypy, strict
	$(BIN)/mypy

layers: $(DEV) ## no lower room imports a higher one
	$(BIN)/python tools/check_layers.py

check: lint type ## everything but the tests

fuzz: $(DEV) ## prune random networks against the oracle; more of them: make fuzz ARGS="--count 20000 --seed 1"
	$(BIN)/python tools/fuzz.py --count 2000 $(ARGS)

bench: $(DEV) ## time the engine
	$(BIN)/python tools/bench_engine.py $(ARGS)

sweep: $(DEV) ## prune and prove all models of a folder: make sweep ARGS="FOLDER --jobs 2"
	$(BIN)/python tools/coverage.py $(ARGS)

accuracy: $(DEV) ## accuracy against MACs kept: make accuracy ARGS="tools/accuracy/public.toml --out rows.jsonl"
	$(BIN)/python tools/bench_accuracy.py $(ARGS)

latency: $(DEV) ## realised speed against MACs kept, with peers: make latency ARGS="resnet50 --out rows.jsonl"
	$(BIN)/python tools/bench_latency.py $(ARGS)

coverage: $(DEV) ## tests with a report of the lines they miss
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term-missing:skip-covered $(ARGS)

build: $(DEV) ## wheel and source distribution in dist/
	rm -rf build dist
	$(BIN)/python -m build

clean: ## remove all that make made, the virtual environment included
	rm -rf .venv build dist *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Both stamps are older than pyproject.toml when that changes, and the project is installed anew.
$(BIN)/python:
	$(PYTHON) -m venv .venv

$(RUNTIME): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# The dev set contains the runtime set.
$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev,torch]'
	touch $(RUNTIME) $@
