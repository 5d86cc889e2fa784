# `make train` and `make test` do all their own set-up, in .venv. Needs Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: train test lint docs bench clean
.DELETE_ON_ERROR:

train: $(VENV)/installed
	$(BIN)/torch-crl train $(ARGS)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal --durations=10 $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site is in site/; open site/index.html, or: $(BIN)/mkdocs serve"

bench: $(VENV)/installed
	$(BIN)/python -m torch_crl.benchmarks.cpu $(ARGS)

clean:
	rm -rf $(VENV) build site *.egg-info

$(VENV)/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "make: '$(PYTHON)' is missing; install Python 3.11 or newer, or name one: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$($(PYTHON) --version) is too old; Python 3.11 or newer is needed: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: $(PYTHON) lacks the venv module; on Debian: apt install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) (once; torch is large)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# Links that an archive or a checkout without symbolic links lacks.
torch_crl/kernels torch_crl/benchmarks:
	@ln -s ../$(@F) $@

$(VENV)/installed: $(VENV)/python torch_crl/kernels torch_crl/benchmarks setup.cfg pyproject.toml constraints.txt
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) --editable '.[dev]'
	@touch $@
