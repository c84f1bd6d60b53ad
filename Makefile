# Two commands do everything on a machine with python3 (3.11 or newer) and make:
#   make demo   runs the main job, end to end, in a real machine
#   make test   runs the tests
# The figures of the README: make bench, or a part of it, once: make bench BENCH="machine --quick"
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.PHONY: demo test conformance bench emulator check format readme clean

demo: $(STAMP)
	$(BIN)/vers-rlm-mcp demo

test: $(STAMP)
	$(BIN)/pytest -n 2 $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The protocol's own suite, on Node from PyPI.
SUITE := tests/conformance
conformance: $(SUITE)/node_modules
	PYTHONPATH=tests $(BIN)/python -W ignore -m conformance

$(SUITE)/node_modules: $(SUITE)/package-lock.json $(STAMP)
	$(BIN)/python -m pip install --quiet --group conformance
	$(BIN)/npm ci --prefix $(SUITE) --ignore-scripts --no-audit --no-fund
	touch $@

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(BENCH)

# A Vers service on this computer. It says how to point the server at it.
emulator: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m vers_emulator

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tables of settings in the README.
readme: $(STAMP)
	$(BIN)/python -m vers_rlm_mcp.settings README.md

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
