# make demo   watch a folder of posters become vectors
# make unit   test without any server, in a minute
# make test   lint, type-check, test
# make setup  only what these need: .venv, Python packages, a Redis server
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-pages unit test lint shuffle matrix chaos fuzz bench bench-feed bench-images bench-latency bench-memory bench-scale clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
# Half of what a test with workers does is wait, so more tests run side by side than there are cores.
PROCESSES ?= 5
# Set to anything, it has each of the hundreds of processes that tests start compile the project again.
export PYTHONDONTWRITEBYTECODE :=

help:  ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) redis  ## Install what is missing: .venv, Python packages, a Redis server

$(STAMP): requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || .ci/install-package python3-venv
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --requirement requirements-dev.txt --constraint constraints.txt
	@touch $@

.PHONY: redis
redis: $(STAMP)
	@command -v redis-server >/dev/null || .ci/install-redis $(BIN)/python

demo: setup  ## Watch posters/ become vectors through a real Redis and a real worker
	@$(BIN)/python -m producer demo

demo-pages: setup  ## The same, then its pages at http://127.0.0.1:8000/ until Ctrl-C
	@$(BIN)/python -m producer demo --serve

unit: $(STAMP)  ## Run the tests that need no server, in a minute
	$(BIN)/python -m pytest -m 'not slow and not chaos' -n 2 --durations=10 tests/unit tests/test_architecture.py

test: setup style  ## Lint, type-check, and run the tests
	@$(MAKE) --no-print-directory --jobs=2 types tests

# Side by side in `make test`: mypy alone would use one core.
.PHONY: style types tests
style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

tests: setup
	$(BIN)/python -m pytest -n $(PROCESSES) --durations=10

lint: style types  ## Lint and type-check only

shuffle: setup  ## Run the tests in another order each time; SEED=7 repeats one
	$(BIN)/python -m pytest -n $(PROCESSES) -p pytest_randomly $(if $(SEED),--randomly-seed=$(SEED))

matrix:  ## Test on every supported version of Python and Redis; PYTHONS="3.12" for some; writes docs/install.md
	$(PYTHON) .ci/matrix $(PYTHONS)

chaos: setup faketime  ## Kill, stop, fill, and cut everything, then a soak of SECONDS=60; WRITE=1 updates the table
	CHAOS_SECONDS=$(or $(SECONDS),60) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -m '' --table -rs --durations=5 \
		$(if $(WRITE),--write-table docs/reliability.md) -s tests/chaos
	CHAOS_SECONDS=$(or $(SECONDS),60) $(BIN)/python -m pytest -m chaos -n 2 tests/unit tests/integration

# One scenario needs it, and is skipped with a reason where it cannot be had.
.PHONY: faketime
faketime:
	@ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || .ci/install-package faketime || true

fuzz: setup  ## Mutate images, print the slowest and the fattest; CASES=5000 sets how many
	FUZZ_CASES=$(or $(CASES),2000) $(BIN)/python -m pytest -s tests/unit/worker/images/test_fuzz.py

bench: setup  ## Compare with open_clip, clip-retrieval and transformers, on this machine
	$(BIN)/python -m bench

bench-memory: setup  ## Does a worker's memory stay flat over 20,000 posters?
	$(BIN)/python -m bench.memory

bench-images: setup  ## Time reading and decoding, per format
	$(BIN)/python -m bench.images

bench-latency: setup  ## How long does a caller wait for a vector? Writes the table into docs/performance.md
	$(BIN)/python -m bench.latency --write

bench-feed: setup  ## Can this machine feed a fast card? Posters/s without a model, and the time under the lock
	$(BIN)/python -m bench.feed

bench-scale: setup  ## Index a million posters again: seconds and memory, at three sizes
	$(BIN)/python -m bench.scale

clean:  ## Remove .venv and caches; posters and vectors stay
	rm -rf $(VENV) $(VENV)-* .mypy_cache .pytest_cache .ruff_cache .hypothesis
