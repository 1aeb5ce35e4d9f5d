# `make demo` and `make test` need nothing but Python 3.11-3.13: they make .venv and install what they use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One thread per process: pytest runs two processes, and results do not depend on the number of threads.
TEST_ENV := OMP_NUM_THREADS=1

.PHONY: demo test lint format bench clean
.DEFAULT_GOAL := demo

demo: $(STAMP)
	$(BIN)/diffsuite demo -o demo-result --overwrite

test: lint
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Needs the packages it compares with: .venv/bin/pip install -c constraints.txt -e '.[bench]'
bench: $(STAMP)
	@for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

# torch first and through the constraints, so that no later package brings another build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "diffsuite needs Python 3.11 to 3.13; give one with make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache demo-result
