# make demo      install, then find syllables in simulated mice and write a report
# make test      every check of the everyday suite; make test-all adds the slow statistical ones (WORKERS=2 processes)
# make bench     tables against the peers
# make clean     remove caches and the demo's output (the virtual environment stays)
#
# Python 3.11 gets the pinned versions of constraints.txt; any later one gets the newest of everything, in a virtual
# environment of its own: make test PYTHON=python3.13

PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
DEMO ?= case_studies/syllables.py fit --demo --out syllables-demo --overwrite
PYTEST_ARGS ?=
# Tests run in so many processes, each of one thread; a process takes over what another has not begun.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# Threads that spin while they wait make a busy machine crawl.
export OMP_WAIT_POLICY ?= PASSIVE

# Named one by one: models/ and inference/ at the top are links to folders in ppgen/.
CHECKED := ppgen tests case_studies benchmarks

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed
	$(BIN)/python $(DEMO)

test: lint
	$(PYTEST) $(PYTEST_ARGS)

test-all: lint
	$(PYTEST) -m "" $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-bench
	set -e; for script in benchmarks/messages.py benchmarks/mixture.py benchmarks/lds.py benchmarks/lds_peers.py benchmarks/mcmc.py; do echo "== $$script"; $(BIN)/python "$$script"; done

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist syllables-demo
	find ppgen tests case_studies benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Installing is repeated only when what it depends on has changed.
$(VENV)/.installed: EXTRA :=
$(VENV)/.installed-test: EXTRA := [test]
$(VENV)/.installed-bench: EXTRA := [bench]
$(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-bench: pyproject.toml constraints.txt
	@set -e; \
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV); \
	pins=$$($(BIN)/python -c "import sys; print('-c constraints.txt' if sys.version_info[:2] == (3, 11) else '')"); \
	echo "Installing ppgen$(EXTRA) in $(VENV); the first time takes some minutes"; \
	$(BIN)/pip install $$pins --editable ".$(EXTRA)"; \
	touch $@
