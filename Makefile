# The only commands to know: demo, test, check, docs, bench, fuzz, chaos, clean. Each sets up .venv first, and only when it is out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEED ?= 0
PEER := .venv-bench
BENCH ?=
SECONDS ?= 600

.PHONY: demo test check docs bench fuzz chaos clean help

help:
	@echo "make demo    set up .venv and live through the whole story in minutes (SEED=0)"
	@echo "make test    set up .venv and run the tests"
	@echo "make check   ruff, format, types, layer contracts"
	@echo "make docs    set up .venv and write the documentation as a site to site/"
	@echo "make bench   set up .venv-bench with TRL and measure side by side (BENCH=--quick: minutes)"
	@echo "make fuzz    feed readers, configuration, run folders, templates and the command line with nonsense (SECONDS=600)"
	@echo "make chaos   kill runs at any instant and compare what comes out of resuming them (SECONDS=600)"
	@echo "make clean   remove .venv, caches and demo/"

# tests/ and the package need no reinstall when a source file changes: the installation is editable.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Prospect needs Python 3.11, 3.12 or 3.13; this is %s. Name another with: make PYTHON=python3.12" % sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Prospect and its pinned dependencies into $(VENV) ..."
	@$(BIN)/python -m pip uninstall --quiet --quiet --yes prospect  # what prospect-kto was called in an older .venv
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

$(VENV)/.docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is in site/; to read it with its search: $(BIN)/python -m http.server --directory site"

# TRL lives in an environment of its own, on the same torch and transformers.
$(PEER)/.installed: benchmarks/constraints.txt constraints.txt
	@test -x $(PEER)/bin/python || $(PYTHON) -m venv $(PEER)
	@echo '*' > $(PEER)/.gitignore
	@echo "Installing TRL into $(PEER) ..."
	@$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check --constraint benchmarks/constraints.txt trl torch
	@touch $@

bench: $(STAMP) $(PEER)/.installed
	$(BIN)/python -m benchmarks.compare $(BENCH)

# New nonsense in every round, until the time is over or something breaks.
fuzz: $(STAMP)
	@end=$$(( $$(date +%s) + $(SECONDS) )); while [ $$(date +%s) -lt $$end ]; do FUZZ=1 $(BIN)/python -m pytest -x tests/fuzz || exit 1; done

chaos: $(STAMP)
	CHAOS=$(SECONDS) $(BIN)/python -m pytest -s tests/chaos

clean:
	rm -rf $(VENV) $(PEER) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache demo site
