# Two commands matter: `make demo` and `make test`. Each sets up what it needs in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: help demo demo-serve test cover lint type format bench fuzz soak faults release clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip >= 25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[otlp,cli]' --group test --group lint
	@touch $@

demo: $(STAMP)  ## A real server, two workers, real clients: see sessions, spans and metrics in two minutes
	$(BIN)/python -m examples.demo

demo-serve: $(STAMP)  ## The same server stays up for a client of your own
	$(BIN)/python -m examples.demo serve

PYTEST = $(BIN)/python -m pytest
# One more than two slow cores have: tests of server processes mostly wait.
WORKERS ?= 3
# Without byte code each worker, and each server that a test starts, would compile the tests and the package again.
test: export PYTHONDONTWRITEBYTECODE =

test: $(STAMP)  ## Unit, integration and process tests
	$(PYTEST) -q -n $(WORKERS)

cover: $(STAMP)  ## The same tests, with the share of lines and branches that they reach
	$(BIN)/coverage erase
	$(MAKE) test PYTEST='$(BIN)/coverage run -m pytest'
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(STAMP)  ## Style, and the layers of the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(STAMP)  ## Types, of tests and examples too
	$(BIN)/pyright

format: $(STAMP)  ## Bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## What a tool call costs with and without, side by side
	$(BIN)/python -m benchmarks.processes
	$(BIN)/python -m benchmarks.flush
	$(BIN)/python -m benchmarks.logs

fuzz: $(STAMP)  ## Hostile input at length: 100,000 of everything made up, every parser fuzzed, every function raising
	$(BIN)/python -m pip install --quiet --only-binary :all: atheris || true
	$(BIN)/python -m tests.hostile fuzz 300
	OTEL_MCP_LONG_TESTS=1 $(BIN)/python -m pytest -q tests/hostile/test_fault_sdk.py tests/store/test_model.py
	$(BIN)/python -m tests.hostile floods 100000

MINUTES ?= 60

soak: $(STAMP)  ## An hour of mixed traffic (MINUTES=60): does anything grow?
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

faults: $(STAMP)  ## With and without us while the store fails: answers, times, log lines, counts
	$(BIN)/python -m tests.faults

release:  ## Build and check what would be released, and show its notes; with TAG=1 tag it
	.ci/release $(if $(TAG),--tag)

clean:  ## Remove the virtual environment
	rm -rf $(VENV)
