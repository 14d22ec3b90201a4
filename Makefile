# make quickstart   train, evaluate and report on the packaged scenes
# make fast         the parts below the stages: no training, no process is started; under a minute on two cores
# make test         every check, the quick ones first: format, lint, types, tests
# make docs         what follows from the code: docs/recipes.md, layers in docs/architecture.md
# make site         the pages as a site, in site/
# Each installs what it needs into .venv, again when pyproject.toml or constraints.txt have changed.
# PYTHON=/path/to/python3.12 chooses the interpreter.

VENV := .venv
BIN := $(VENV)/bin
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for name in python3.11 python3.12 python3 python; do \
	$$name -c '$(SUPPORTED)' 2>/dev/null && echo $$name && break; done)
TEST_WORKERS ?= 2
# worksteal: neighboring tests stay in one process, so that what a file prepares is prepared once
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal -m "not slow"

.PHONY: quickstart fast test lint format docs site install install-dev clean

quickstart: install
	$(BIN)/openjepa quickstart

fast: install-dev
	$(PYTEST) --fast

test: lint
	$(PYTEST)

lint: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict openjepa

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install-dev
	$(BIN)/python -m docs.generate

site: install-dev
	$(BIN)/python -m docs.generate --site build/pages
	$(BIN)/zensical build --clean --strict

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 was not found: install one, or pass PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "$(PYTHON) is not Python 3.11 or 3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	if test -e $(VENV)/.installed-dev; then $(MAKE) install-dev; \
	else $(BIN)/python -m pip install -c constraints.txt -e '.[eval,report]'; fi
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
