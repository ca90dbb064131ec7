# Everything runs in .venv, which each target creates if it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST_PYTHON ?= python3.10
OLDEST := .venv-oldest
STAMP := $(VENV)/.installed
LOOPS := $(VENV)/.installed-loops
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-oldest lint docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## convert a checkpoint, prove parity, train with the result
	$(BIN)/pylo-zoo convert velo-sample --out zoo/velo-sample --force
	$(BIN)/pylo-zoo verify zoo/velo-sample
	$(BIN)/python examples/digits.py --weights zoo/velo-sample

test: lint  ## lint, types and the tests
	$(PYTEST)

test-full: lint $(LOOPS)  ## all tests including slow ones, and a report of error margins, which must be at most a half
	$(PYTEST) -m "slow or not slow" --margins

test-oldest: $(OLDEST)/.installed  ## the tests on the lowest versions that pyproject.toml allows; downloads 3 GB
	PATH="$(CURDIR)/$(OLDEST)/bin:$$PATH" $(OLDEST)/bin/python -m pytest --numprocesses auto --dist loadfile

lint: $(STAMP)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(STAMP)  ## build the documentation site in site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Built site/index.html. To view it, run: $(BIN)/mkdocs serve"

clean:  ## remove the virtual environment, caches and everything built
	rm -rf $(VENV) $(OLDEST) build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml setup.py constraints.txt
	@echo "Installing torch, jax and the development tools into $(VENV), once. This takes a few minutes and 3 GB on disk,"
	@echo "or about 6 GB with a CUDA build of torch."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(LOOPS): $(STAMP)
	@echo "Installing transformers, accelerate and lightning into $(VENV), for the tests of training loops."
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,loops]'
	@touch $@

$(OLDEST)/.installed: pyproject.toml setup.py constraints-oldest.txt
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --upgrade pip  # Python 3.10's pip needs over ten minutes to resolve this
	$(OLDEST)/bin/python -m pip install --constraint constraints-oldest.txt --editable '.[dev]'
	@touch $@
