# The only commands to know: demo, test, check, bench, clean. Each sets up .venv first, and only when it is out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEED ?= 0

.PHONY: demo test check bench clean help

help:
	@echo "make demo    set up .venv and live through the whole story in minutes (SEED=0)"
	@echo "make test    set up .venv and run the tests"
	@echo "make check   ruff, format, types, layer contracts"
	@echo "make bench   benchmarks against peers (part of the speed work, not built yet)"
	@echo "make clean   remove .venv, caches and demo/"

# tests/ and the package need no reinstall when a source file changes: the installation is editable.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Prospect needs Python 3.11, 3.12 or 3.13; this is %s. Name another with: make PYTHON=python3.12" % sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Prospect and its pinned dependencies into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@rm -rf demo
	$(BIN)/prospect demo --seed $(SEED) --out demo

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	@echo "Benchmarks belong to the speed work and do not exist yet."

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache demo
