# Each target sets itself up: the first one makes .venv, the others find it ready.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test check bench clean

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Processes of the test run. Each keeps to one core: threads that spin on each other's cores starve all.
WORKERS ?= 2

demo: $(READY)
	$(BIN)/python examples/demo.py

# The tests that need every core run first and alone (pytest says 5 where none was selected).
test: check
	$(BIN)/python -m pytest -q -m threads $(TESTS) || test $$? -eq 5
	$(BIN)/python -m pytest -q -m "not threads" -n $(WORKERS) $(TESTS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

# Such as BENCH="--shapes llama-1b --formats int4 --peer llama.cpp=/path/to/python".
bench: $(READY)
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf .venv build dist *.egg-info

# torch goes first and alone: a resolver that meets it among the others may take a build for another device.
$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, this is {sys.version}; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/pip install -q -e '.[cpu,dev]' -c constraints.txt
	touch $@
