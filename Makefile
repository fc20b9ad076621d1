# Every target makes what it needs: a virtual environment in .venv, with the package and its tools.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A process per CPU, each with one thread; tests/conftest.py says what stays together.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 8 --no-loadscope-reorder

.PHONY: demo test test-fast test-recipes test-all lint format types check bench clean help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing ssl-ray into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(INSTALLED)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,bench]'
	@touch $@

demo: $(INSTALLED)  ## pretrain MoCo on 7,000 real images and judge it, no download (2 to 7 minutes on 2 cores)
	@$(BIN)/ssl-ray pretrain moco

test: $(INSTALLED)  ## the tests, real Ray and real MLflow included, without clusters of several nodes
	@$(PYTEST) -m "not recipes and not cluster"

test-fast: $(INSTALLED)  ## unit tests alone: neither Ray nor a server nor another process
	@$(PYTEST) -m "unit and not recipes and not gpu"

test-recipes: $(INSTALLED)  ## recipes of each kind through the real command, README's own, and every loss compiled
	@$(PYTEST) -m recipes

test-all: $(INSTALLED)  ## all tests: those above, and faults and jobs on clusters of several nodes (hours)
	@$(PYTEST)

lint: $(INSTALLED)  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(INSTALLED)  ## rewrite in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(INSTALLED)  ## mypy, strict
	@$(BIN)/mypy

check: lint types test test-recipes  ## what CI runs

bench: $(VENV)/.installed-bench  ## the benchmarks, rivals in the same run
	@$(BIN)/python benchmarks/data.py
	@$(BIN)/python benchmarks/overhead.py

clean:  ## what the targets made, but not your runs
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
