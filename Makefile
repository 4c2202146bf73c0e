# make demo   watch a folder of posters become vectors
# make test   lint, type-check, test
# make setup  only what the two need: .venv, Python packages, redis-server
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint fuzz bench bench-images bench-scale clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

help:  ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) redis  ## Install what is missing: .venv, Python packages, redis-server

$(STAMP): requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || .ci/install-package python3-venv
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --requirement requirements-dev.txt --constraint constraints.txt
	@touch $@

.PHONY: redis
redis:
	@command -v redis-server >/dev/null || .ci/install-package redis-server

demo: setup  ## Watch posters/ become vectors through a real Redis and a real worker
	@$(BIN)/python -m producer demo

test: setup lint  ## Lint, type-check, and run the tests
	$(BIN)/python -m pytest

lint: setup  ## Lint and type-check only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: setup  ## Mutate images; CASES=5000 sets how many
	FUZZ_CASES=$(or $(CASES),2000) $(BIN)/python -m pytest tests/test_images_fuzz.py

bench: setup  ## Compare with a plain open_clip loop, on this machine
	$(BIN)/python -m bench

bench-images: setup  ## Time reading and decoding, per format
	$(BIN)/python -m bench.images

bench-scale: setup  ## Index a million posters again: seconds and memory, at three sizes
	$(BIN)/python -m bench.scale

clean:  ## Remove .venv and caches; posters and vectors stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
