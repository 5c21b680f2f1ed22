# Every target creates .venv when it is missing, installs under constraints.txt, and is quick when nothing changed.
#
# The pinned torch comes from the package index. To choose a build by hand (a CUDA version, the CPU-only wheels),
# install it first, for example:
#   make .venv/bin/python && .venv/bin/python -m pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
LLAMA := $(VENV)/llama

.PHONY: help install quickstart test lint format docs soak tables recipes bench reference compat peft-suite wheel clean

help:
	@echo "make quickstart   set up, fetch a real base, train two adapters on it, show what they gain"
	@echo "make test         set up and run the tests"
	@echo "make lint         formatting, lint and types"
	@echo "make format       apply formatting and safe lint fixes"
	@echo "make docs         build the site of the documentation, in English and Chinese, into site/"
	@echo "make tables       measure the figures that the docs quote (long; writes benchmarks/results/*.json)"
	@echo "make recipes      run every recipe of docs/recipes on its real base and check its result (long; RECIPE=NAME: one)"
	@echo "make bench        measure the speed beside PEFT and the frozen base (long); make bench JOB=W1: one job"
	@echo "make soak         the tests that take long"
	@echo "make reference    write the pages about settings, command line and API from the code"
	@echo "make compat       part of the tests with the oldest and newest versions of the dependencies (long; fresh environments)"
	@echo "make peft-suite   PEFT's own tests, from its source distribution, with peftly.peft in place of peft (ten minutes)"
	@echo "make wheel        build the wheel into dist/"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] >= (3, 11)' 2>/dev/null \
		|| { echo "error: $(PYTHON) is not Python 3.11 or later; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs,interop]'
	@touch $@

install: $(INSTALLED)

quickstart: install
	$(BIN)/peftly quickstart

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'not soak'

# llama.cpp is built from source (three minutes on two cores, with cmake and a compiler); without it its tests are skipped.
$(LLAMA): $(INSTALLED)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[llama]'
	@touch $@

soak: install $(LLAMA)
	$(BIN)/python -m pytest -m soak
	$(BIN)/python tests/soak/crash_totals.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/model_classes.py --again

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/python scripts/zh_tables.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

tables: install
	$(BIN)/python benchmarks/quickstart_seeds.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/qlora.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/parameter_counts.py
	$(BIN)/python benchmarks/concept_pages.py
	$(BIN)/python benchmarks/memory_of_bases.py
	$(BIN)/python benchmarks/padding.py
	$(BIN)/python benchmarks/beside_peft.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/guide_outputs.py
	$(BIN)/python scripts/zh_tables.py

recipes: install
	$(BIN)/python benchmarks/recipes.py $(RECIPE)

bench: install
	$(BIN)/python benchmarks/speed.py $(if $(JOB),--jobs $(JOB))

reference: install
	$(BIN)/python scripts/api_page.py
	$(BIN)/python scripts/settings_page.py
	$(BIN)/python scripts/command_line_page.py
	$(BIN)/python scripts/coming_from_page.py
	$(BIN)/python scripts/llms_page.py
	$(BIN)/python scripts/zh_tables.py

compat: install
	$(BIN)/python scripts/compat.py

peft-suite: install
	$(BIN)/python scripts/peft_suite.py

wheel: install
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache
