# `make train` and `make test` do all their own set-up, in .venv. Needs Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

# The versions of the hosts on which this has been measured, with CUDA and in an environment of its own.
REHEARSE := .venv-rehearse
REHEARSE_VERSIONS := torch==2.11.0 triton==3.6.0
NULL_GPU := benchmarks/null_gpu

.PHONY: train test lint docs bench rehearse clean
.DELETE_ON_ERROR:

train: $(VENV)/installed
	$(BIN)/torch-crl train $(ARGS)

test: $(VENV)/installed-dev
	@# Hundreds of processes would each compile the same sources where bytecode may not be kept.
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --dist worksteal --durations=10 $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "the site is in site/; open site/index.html, or: $(BIN)/mkdocs serve"

bench: $(VENV)/installed
	$(BIN)/python -m torch_crl.benchmarks.cpu $(ARGS)

# The tests and benchmarks of a GPU, on one that computes nothing; see benchmarks/null_gpu/README.md.
rehearse: $(REHEARSE)/null_gpu/libcuda.so.1
	$(REHEARSE)/bin/python -m torch_crl.benchmarks.null_gpu $(ARGS)

clean:
	rm -rf $(VENV) $(REHEARSE) build site *.egg-info

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

$(REHEARSE)/installed: torch_crl/kernels torch_crl/benchmarks setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(REHEARSE)
	@grep -vE '^(torch|triton|setuptools)==' constraints.txt > $(REHEARSE)/constraints.txt
	@$(REHEARSE)/bin/python -m pip install --disable-pip-version-check --constraint $(REHEARSE)/constraints.txt \
	  $(REHEARSE_VERSIONS) --editable '.[baselines]' pytest
	@touch $@

# Linked as libcuda.so too, which is what Triton's launchers ask for when they are compiled.
$(REHEARSE)/null_gpu/libcuda.so.1: $(REHEARSE)/installed $(wildcard $(NULL_GPU)/*.cpp $(NULL_GPU)/*.h)
	@mkdir -p $(@D)
	$(CXX) -std=c++17 -O1 -Wall -Wextra -shared -fPIC -fvisibility=hidden -Wl,-soname,$(@F) -o $@ \
	  -I $$(echo $(REHEARSE)/lib/python3*/site-packages/nvidia/cu[0-9]*/include) -I $(NULL_GPU) $(NULL_GPU)/*.cpp -ldl
	@ln -sf $(@F) $(@D)/libcuda.so
