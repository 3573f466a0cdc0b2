# What one does with this house. Each target needs Python 3.11+ and make; the first one sets up .venv by itself.
#   PYTHON=python3.12 make test    another Python
#   JOBS=8 make test               more processes at once (the default suits two cores)
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu make demo    PyTorch without CUDA, a tenth of the download

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
JOBS ?= 2
BIN := .venv/bin
# The benchmarks of speed and memory, each with the flag of its short form, which `make bench` runs.
SPEED = "step --short" "plan_time --short" "plan_before_run --short" "attach --short" "merged_latency --short" "rows --short" "spectra --short" \
	"combine_beside_peft --short" "head --quick" "whole_job --quick" "checkpointing --quick" "compile_time --quick" "large_data --quick" "fuzz --quick"
# One thread a process: JOBS processes share the cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
ON_JOBS = -n $(JOBS) --dist worksteal

.PHONY: help demo test soak unit peers lint fix record docs docs-serve tutorial bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile

demo: .venv/demo.stamp ## train, look at and merge a small adapter, from nothing
	@$(BIN)/python -m lorakit.cli.demo

test: lint ## every kind of check: lint, types, all tests, of long tables a sample (GPU tests only where there is one)
	$(PYTEST) $(ON_JOBS) -m "not soak"

soak: .venv/dev.stamp ## the cases of the long tables that `make test` leaves out
	$(PYTEST) $(ON_JOBS) -m soak

unit: .venv/dev.stamp ## the fast tests
	$(PYTEST) $(ON_JOBS) -m "not slow and not gpu and not soak"

peers: .venv/peers.stamp ## fetch tools that cannot be installed beside ours, for the tests that read their source

lint: .venv/dev.stamp ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

fix: .venv/dev.stamp ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

record: .venv/dev.stamp ## write tests/surface.txt, docs/cli.md and docs/layout.md again; read the diff before you commit it
	$(BIN)/python tests/test_surface.py
	$(BIN)/python docs/book/layout.py

docs: .venv/dev.stamp ## build the documentation, and say where it lies; a broken link or docstring fails
	@$(BIN)/python docs/book

docs-serve: .venv/dev.stamp ## the same, and show it on http://127.0.0.1:8000
	@$(BIN)/python docs/book --serve

tutorial: .venv/dev.stamp ## run the notebooks, and write them in place with their outputs
	$(BIN)/python docs/tutorial/run.py

ifdef FULL
bench: .venv/dev.stamp ## speed and memory, in a few minutes, printed; FULL=1: all under benchmarks/, hours, written to docs/
	@for file in benchmarks/*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done
else
bench: .venv/dev.stamp
	@for job in $(SPEED); do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$${job% *}.py $${job#* } || exit 1; done
endif

clean: ## take away .venv, caches and what was built
	rm -rf .venv build dist .pytest_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say that .venv holds what pyproject.toml asks for, in the versions of constraints.txt.
.venv/torch.stamp: constraints.txt
	@test -n "$(PYTHON)" || { echo "lorakit needs Python 3.11 or newer, and found none: install one, or name it: PYTHON=... make" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lorakit needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version 2>&1`. Name another: PYTHON=... make" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing PyTorch and lorakit into .venv; the first time this takes some minutes."
	$(BIN)/python -m pip install $(TORCH_INDEX:%=--index-url %) -c constraints.txt torch
	@touch $@

.venv/demo.stamp: .venv/torch.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

.venv/dev.stamp: .venv/torch.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch .venv/demo.stamp $@

# Without what they need, and not on the path of .venv: their pins exclude the versions of ours.
.venv/peers.stamp: .venv/dev.stamp
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/peers -c constraints.txt llamafactory unsloth
	@touch $@
