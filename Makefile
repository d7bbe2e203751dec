# `make demo` and `make test` are all a newcomer needs; both set up .venv first.
VENV := .venv
BIN := $(VENV)/bin
PROGRAM := $(VENV)/.program
STAMP := $(VENV)/.installed
# the first that runs (a shim may be on the path and have nothing behind it) and is new enough
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
    $$name -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)
STORE ?= demo_out/store
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup demo test bench lint format types docs docs-check api acknowledge ui clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(STAMP)  ## .venv with the package, all extras and the tools of development

$(PROGRAM): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one by make setup PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and alone: a wheel that pip is configured to find locally (a CPU build, say) is then taken as it is
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(STAMP): $(PROGRAM)
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(PROGRAM)  ## render a clip, run the pipeline on it, compare with the truth
	$(BIN)/vipe-dag demo

test: setup  ## the tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

bench: setup  ## poses against COLMAP, one table; BENCH='--only NAME --gate' and the like are passed on
	$(PIP) install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.poses $(BENCH)

lint: setup  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## apply what lint asks for, where that is mechanical
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup  ## mypy
	$(BIN)/mypy

docs: setup  ## write docs/configuration.md from the models
	$(BIN)/python docs/generate.py

docs-check: setup  ## fail when docs/configuration.md is not current
	$(BIN)/python docs/generate.py --check

api: setup  ## write build/api, a page of every public name; fails on a warning
	$(BIN)/python docs/api.py build/api

acknowledge: setup  ## record the present source of each stage as its algorithm's
	$(BIN)/python tests/algorithm_hashes.py

ui: setup  ## the Dagster UI on STORE (default: what the demo wrote)
	$(BIN)/vipe-dag ui --store $(STORE)

clean:  ## remove caches and the demo's output, not .venv
	rm -rf demo_out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
