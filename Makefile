# Two commands do everything on a machine with python3 (3.11 or newer) and make:
#   make demo   runs the main job, end to end, in a real machine
#   make test   runs the tests, but for the slow ones: make test-slow
# The figures of the README: make bench, or a part of it, once: make bench BENCH="machine --quick"
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.PHONY: demo test test-slow test-microvm conformance mcpb bench emulator check format readme clean

demo: $(STAMP)
	$(BIN)/vers-rlm-mcp demo

# More workers than cores, as many tests wait. A worker that has nothing left to do takes over tests
# of another.
WORKERS ?= 4
PYTEST  := $(BIN)/pytest -n $(WORKERS) --dist worksteal

test: $(STAMP)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

# Load, long histories and random schedules.
test-slow: $(STAMP)
	$(PYTEST) -m slow $(PYTEST_ARGS)

# Real micro-VMs, in an emulated computer where this one has no KVM: everything, or MICROVM=smoke
# for each thing once, =machines or =kernel for a part, or =shell to look around in that computer.
# It says what it needs. Minutes to hours.
test-microvm: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m microvm $(MICROVM)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The protocol's own suite.
conformance: node_modules
	PYTHONPATH=tests $(BIN)/python -W ignore -m conformance

# Clients of others, each installed into an environment of its own.
clients: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m real_clients $(CLIENTS)

# An inspector, a scanner and a fuzzer, let loose on the server.
AUDIT := tests/audit
audit: $(AUDIT)/node_modules
	PYTHONPATH=tests $(BIN)/python -m audit $(AUDITS)

$(AUDIT)/node_modules: $(AUDIT)/package-lock.json node_modules
	$(BIN)/npm ci --prefix $(AUDIT) --ignore-scripts --no-audit --no-fund
	touch $@

# The bundle for Claude Desktop and others, with all that git knows of the package.
BUNDLE := dist/mcpb
mcpb: node_modules
	rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)
	git ls-files pyproject.toml README.md LICENSE src | tar -cT - | tar -xC $(BUNDLE)
	cp packaging/manifest.json packaging/icon.png $(BUNDLE)
	$(MCPB) validate $(BUNDLE)/manifest.json
	$(MCPB) pack $(BUNDLE) dist/vers-rlm-mcp.mcpb

MCPB := $(BIN)/node node_modules/@anthropic-ai/mcpb/dist/cli/cli.js

# Tools of others, with Node from PyPI.
node_modules: package-lock.json $(STAMP)
	$(BIN)/python -m pip install --quiet --group node
	$(BIN)/npm ci --ignore-scripts --no-audit --no-fund
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
