# make quickstart    train on the built-in digits, on a machine that has only Python and make
# make test          the whole suite, but what needs a GPU
# make test-fast     the same without its slow tests
# make test-oldest   the fast tests with the oldest torch, torchvision and timm that pyproject.toml allows
# make lint          style and types
# make test-timm     timm's own model tests over our models
# make clean         everything these made, runs excepted
#
# PYTHON=... chooses the interpreter, VENV=... the environment, PINS=... pip's versions, JOBS=... the test processes.

PYTHON ?= $(shell for python in python3.12 python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
PINS ?= -c constraints.txt
JOBS ?= 2
BIN := $(VENV)/bin

.PHONY: quickstart install-dev test test-fast test-oldest lint test-timm clean

quickstart: $(VENV)/installed
	$(BIN)/t2t-vit train digits --output runs/quickstart --resume
	@echo "Look at runs/quickstart/report.html. Next: $(BIN)/t2t-vit serve --checkpoint runs/quickstart, or --help"

install-dev: $(VENV)/installed-dev

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not gpu"

test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow and not gpu"

# "torch>=2.11,<2.16" becomes torch==2.11.
test-oldest: $(BIN)/python
	$(MAKE) test-fast VENV=.venv-oldest PYTHON=$(BIN)/python PINS="$$($(BIN)/python -c 'import re, tomllib; \
		needed = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]; \
		print(*(re.sub(">=([0-9.]+).*", r"==\1", need) for need in needed if ">=" in need))')"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# timm's version is the installed one. Only its tests are unpacked: its package would hide the installed one.
test-timm: $(VENV)/installed-dev
	set -e; release=timm-$$($(BIN)/python -c 'from importlib.metadata import version; print(version("timm"))'); \
	test -f .cache/$$release.tar.gz || $(BIN)/pip download --dest .cache --no-deps --no-binary timm timm==$${release#timm-}; \
	tar -xzf .cache/$$release.tar.gz -C .cache $$release/pyproject.toml $$release/tests; \
	PYTHONPATH=tests/timm_suite OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -p timm_suite \
		-c .cache/$$release/pyproject.toml .cache/$$release/tests/test_models.py

clean:
	rm -rf $(VENV) .venv-* .cache .mypy_cache .ruff_cache .pytest_cache build src/*.egg-info

# The stamps are older than what they were made from when that changes, and then make installs again.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install $(PINS) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install $(PINS) -e '.[dev]'
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "t2t-vit needs Python 3.11 or 3.12. Found none; name yours: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
