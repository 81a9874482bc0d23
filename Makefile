# make demo, make test: all that is needed is Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test lint lock clean

help:
	@echo "make demo    a synthetic plate -> OME-Zarr -> pretrained model -> scores and pictures (runs in ./demo)"
	@echo "make test    lint, types, tests"
	@echo "make lint    ruff and mypy alone"
	@echo "make lock    resolve the dependencies of pyproject.toml anew into requirements.txt"
	@echo "make clean   remove the environment and the demo"

setup: .venv/.ready

.venv/.ready: requirements.txt requirements-uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	$(BIN)/pytest

lock:
	echo uv | $(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header -o requirements-uv.txt -
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 --all-extras pyproject.toml -o requirements.txt

clean:
	rm -rf .venv demo
