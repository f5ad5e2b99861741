# Each target sets itself up: the first one makes .venv, the others find it ready.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test check bench clean

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Workers of the test run. Each keeps to one thread: two that spin on the same two cores starve each other.
WORKERS ?= 2

demo: $(READY)
	$(BIN)/python examples/demo.py

test: check
	OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) $(TESTS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist *.egg-info

# torch goes first and alone: a resolver that meets it among the others may take a build for another device.
$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, this is {sys.version}; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/pip install -q -e '.[cpu,dev]' -c constraints.txt
	touch $@
