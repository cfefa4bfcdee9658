# Each target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: run test check conformance gate prove peers compile-check clean

run: $(INSTALLED)  ## first verdict, on the Triton engine: no GPU is needed, no download of weights
	$(BIN)/s35 run --quick --engine=optimized

test: $(INSTALLED)
	$(BIN)/pytest tests conformance --engine=reference

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

conformance: $(INSTALLED)
	$(BIN)/s35 conform

gate: $(INSTALLED)  ## the engines of the catalogue whose checks are quick; `make test` judges every fourth of them
	$(BIN)/s35 prove --gate

prove: $(INSTALLED)  ## the whole catalogue: wrong engines, right ones, and attacks
	$(BIN)/s35 prove

peers: $(INSTALLED)  ## other implementations, compared and judged: transformers, mlx-lm; llama.cpp where it is installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(BIN)/pytest tests/peers

compile-check: $(INSTALLED)  ## every kernel for Hopper, Blackwell, DGX Spark and MI300, without any of them
	$(BIN)/s35 compile-check

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON): is $$($(PYTHON) --version 2>&1); want Python 3.11 or newer, as in: make $(firstword $(MAKECMDGOALS) run) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
