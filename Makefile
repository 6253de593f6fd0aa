# `make demo` and `make test` work from a fresh clone: each sets up .venv first, and is quick the second time.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: setup demo test check format lint types nightly proto clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --upgrade pip setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[server,demo,dev]'
	$(BIN)/pip install --quiet --no-deps crypten==0.4.1
	touch $@

demo: setup
	$(BIN)/triskele demo $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

check: setup lint types test

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check

format: setup
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

types: setup
	$(BIN)/mypy

# What takes too long for every change: the sizes of the performance targets.
nightly: setup
	$(BIN)/python -m bench.operations
	$(BIN)/python -m bench.filter

proto: setup
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto proto/triskele_proto/v1/*.proto

clean:
	rm -rf $(VENV) build dist
