# Every command of the project. `make` without arguments lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALLED := $(VENV)/.installed

# The servers that `make bench` compares denoised with have an environment of their own.
PEERS := .venv-bench
PEERS_LOCK := bench/peers/requirements.lock

# The folder with the four IDX files of Fashion-MNIST; this is where Debian's package dataset-fashion-mnist puts them.
DATA ?= /usr/share/datasets/fashion-mnist
OUT ?= runs/fashion-mnist
MINUTES ?= 30
# The folders of a run of `denoised train-text` and of a judge of `denoised train-judge`.
RUN ?= runs/emoji
JUDGE ?= runs/judge/model
# The recipes read these from the environment, so that a path may contain spaces and quotes.
export DATA OUT RUN JUDGE
# Test processes. Most tests wait for a server, so there may be more than cores; 0 runs all tests in one process. Each
# process and its servers get one OpenMP thread, and the threads of tests that take several do not spin for long: threads
# that wait for each other by spinning slow all the others.
PROCESSES ?= 3
# Bytecode is kept even where the environment says otherwise: every process would compile all modules and tests anew.
PYTEST := PYTHONDONTWRITEBYTECODE= GOMP_SPINCOUNT=10000 $(BIN)/pytest

.DEFAULT_GOAL := help
.PHONY: help install serve test test-browser test-slow test-faults test-processors soak lint format train quality emoji bench scale lock

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv with everything that the other commands need

serve: install ## start store, API and worker on http://127.0.0.1:8000 (options: ARGS="--port 9000")
	@$(BIN)/denoised serve $(ARGS)

test: install ## run the tests (a selection: ARGS="tests/model" or ARGS="-k plans")
	OMP_NUM_THREADS=1 $(PYTEST) -n $(PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

test-browser: install ## run all tests of the playground in Chromium (Debian: apt install chromium)
	$(PYTEST) -m browser $(ARGS)

test-slow: install ## run the tests that take minutes
	@$(PYTEST) -m slow $(ARGS) || $(NONE_COLLECTED)

test-faults: install ## run the tests that kill, starve or disconnect real processes
	@$(PYTEST) -m faults $(ARGS) || $(NONE_COLLECTED)

test-processors: install ## run the tests of arithmetic under other instruction sets, threads, no compiler (ARGS="--only 3,7")
	@$(BIN)/python ops/processors.py $(ARGS)

soak: install ## run 30 minutes of mixed load with cancels and lost clients, then check for leaks (MINUTES=30)
	DENOISED_SOAK_MINUTES=$(MINUTES) $(BIN)/pytest -s -m faults tests/journeys/test_load.py -k hours $(ARGS)

lint: install ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## fix what ruff can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

train: install ## train on Fashion-MNIST, or resume that run (DATA=, OUT=, options: ARGS="--images 800000")
	@resume=; for checkpoint in "$$OUT"/checkpoints/step-*.safetensors; do [ ! -e "$$checkpoint" ] || resume=--resume; done; \
		$(BIN)/denoised train --data "$$DATA" --out "$$OUT" $$resume $(ARGS)

quality: install ## measure the bundled model with every sampler and write docs/quality.md (resumable)
	@GOMP_SPINCOUNT=10000 $(BIN)/python -m denoised.model quality --data "$$DATA" $(ARGS)

emoji: install ## export a run as the bundled emoji model, choose its defaults and write docs/quality-emoji.md (RUN=, JUDGE=)
	@$(BIN)/denoised export-text --run "$$RUN" --out model/zoo/emoji
	@GOMP_SPINCOUNT=10000 $(BIN)/python -m denoised.model quality-text --data "$$RUN" --judge "$$JUDGE" $(ARGS)

bench: install $(PEERS)/.installed ## benchmark denoised and its peers and write docs/performance.md (short: ARGS=--quick)
	@GOMP_SPINCOUNT=10000 $(BIN)/python -m bench $(ARGS)

scale: install ## measure many workers, jobs and listeners on one Valkey and write docs/scale.md (short: ARGS=--quick)
	@GOMP_SPINCOUNT=10000 $(BIN)/python -m bench.scale $(ARGS)

lock: install ## update the requirements.lock files after a change of pyproject.toml (newest versions: ARGS=--upgrade)
	@$(BIN)/python ops/lock.py $(ARGS)

# pytest exits with 5 if it collects no test.
NONE_COLLECTED = { code=$$?; [ $$code -eq 5 ] && echo "No test has this marker."; }

# Repeated only after a change of the dependencies. An existing virtual environment is reused.
$(INSTALLED): pyproject.toml requirements.lock
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(PYTHON_IS_FIT) && $(PYTHON) -m venv $(VENV); }
	@echo "Installing into $(VENV). This takes minutes the first time, because torch is large."
	@$(PIP) install --quiet --requirement requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(PEERS)/.installed: $(PEERS_LOCK) | $(INSTALLED)
	@$(PEERS)/bin/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m venv $(PEERS)
	@echo "Installing the benchmark's peers into $(PEERS). This takes minutes the first time."
	@$(PEERS)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --requirement $(PEERS_LOCK)
	@touch $@

PYTHON_IS_FIT = { \
	command -v $(PYTHON) >/dev/null || \
		{ echo "denoised needs Python 3.11 or newer, and $(PYTHON) was not found; choose another: make PYTHON=…" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "denoised needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1); choose another: make PYTHON=…" >&2; exit 1; }; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) cannot create virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	}
