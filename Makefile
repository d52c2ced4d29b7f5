# make run: both systems on the embedded digits.  make test: checks and tests.  BUILD.md has the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUNS   := runs/quickstart
TPU    := .venv-tpu

.PHONY: run test check bench docs dist chaos fuzz tpu-check format clean

run: $(VENV)/installed
	$(BIN)/python -m retrieval_jax run --config=configs/quickstart.py:vanilla --workdir=$(RUNS)/vanilla
	$(BIN)/python -m retrieval_jax run --config=configs/quickstart.py:hint --workdir=$(RUNS)/hint
	$(BIN)/python -m retrieval_jax compare $(RUNS)/vanilla $(RUNS)/hint --output $(RUNS)
	@echo "reports: $(RUNS)/vanilla/report.html $(RUNS)/hint/report.html"

test: check
	$(BIN)/python -m pytest

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The peers come from the bench extra; EMBEDDINGS is the embeddings.npz of a run.
bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.retrieval $(if $(EMBEDDINGS),--embeddings $(EMBEDDINGS))
	$(BIN)/python -m benchmarks.training

# The site, in site/; what a page refers to and isn't there is an error.
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# sdist and wheel, in dist/.
dist: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[release]'
	$(BIN)/hatchling build --clean
	$(BIN)/twine check --strict dist/*

chaos: $(VENV)/installed
	$(BIN)/python -m tools.chaos
	$(BIN)/python -m tools.faults

# Every reader of a file, for SECONDS in all.
SECONDS ?= 3600
fuzz: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tools.fuzz $(SECONDS)

# Real TPU executables without a TPU; libtpu has an environment to itself, or JAX would look for one.
tpu-check: $(TPU)/installed
	$(TPU)/bin/python -m tools.tpu_check

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(TPU) site dist .fuzz .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/installed: EXTRA := dev
$(TPU)/installed: EXTRA := tpu-check
$(VENV)/installed $(TPU)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA)]'
	touch $@
