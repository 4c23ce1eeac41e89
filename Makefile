# Every verb of the project. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALLED := $(VENV)/.installed

# The programs that `make bench` compares denoised with, in an environment of their own.
PEERS := .venv-bench
PEERS_LOCK := bench/peers/requirements.lock

# Fashion-MNIST's four IDX files; on Debian the package dataset-fashion-mnist puts them here.
DATA ?= /usr/share/datasets/fashion-mnist
OUT ?= runs/fashion-mnist
MINUTES ?= 30

.DEFAULT_GOAL := help
.PHONY: help install serve test test-browser test-slow test-faults soak lint format train quality bench lock

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv with all that the other verbs need

serve: install ## start the store, the API and a worker on http://127.0.0.1:8000 (options: ARGS="--port 9000")
	@$(BIN)/denoised serve $(ARGS)

test: install ## run the tests (some of them: ARGS="-k plans")
	$(BIN)/pytest $(ARGS)

test-browser: install ## run all tests of the playground in a Chromium (Debian: apt install chromium)
	$(BIN)/pytest -m browser $(ARGS)

test-slow: install ## run the tests that take minutes
	@$(BIN)/pytest -m slow $(ARGS) || $(NONE_COLLECTED)

test-faults: install ## run the tests that kill, starve or cut off real programs
	@$(BIN)/pytest -m faults $(ARGS) || $(NONE_COLLECTED)

soak: install ## half an hour of mixed work, cancels and clients that vanish; what is held afterwards (MINUTES=30)
	DENOISED_SOAK_MINUTES=$(MINUTES) $(BIN)/pytest -s -m faults tests/journeys/test_load.py -k hours $(ARGS)

lint: install ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

train: install ## train on Fashion-MNIST, or continue that run (DATA=, OUT=, options: ARGS="--images 800000")
	@$(BIN)/denoised train --data $(DATA) --out $(OUT) \
		$(if $(wildcard $(OUT)/checkpoints/step-*.safetensors),--resume) $(ARGS)

quality: install ## measure the bundled model with every sampler, write docs/quality.md (continues an interrupted sweep)
	@GOMP_SPINCOUNT=10000 $(BIN)/python -m model quality --data $(DATA) --precision bfloat16 $(ARGS)

bench: install $(PEERS)/.installed ## compare denoised with its peers, write docs/performance.md (a quick check: ARGS=--quick)
	@GOMP_SPINCOUNT=10000 $(BIN)/python -m bench $(ARGS)

lock: install ## write the requirements.lock files anew after a change of pyproject.toml (newest versions: ARGS=--upgrade)
	@$(BIN)/python ops/lock.py $(ARGS)

# pytest says 5 when it collected nothing.
NONE_COLLECTED = { code=$$?; [ $$code -eq 5 ] && echo "There are no such tests yet."; }

# Done again only when what is asked for has changed. A virtual environment that is there is used as it is.
$(INSTALLED): pyproject.toml requirements.lock
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(PYTHON_IS_FIT) && $(PYTHON) -m venv $(VENV); }
	@echo "Installing into $(VENV): minutes the first time, torch is large."
	@$(PIP) install --quiet --requirement requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(PEERS)/.installed: $(PEERS_LOCK) | $(INSTALLED)
	@$(PEERS)/bin/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m venv $(PEERS)
	@echo "Installing the benchmark's peers into $(PEERS): minutes the first time."
	@$(PEERS)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --requirement $(PEERS_LOCK)
	@touch $@

PYTHON_IS_FIT = { \
	command -v $(PYTHON) >/dev/null || \
		{ echo "denoised needs Python 3.11 or newer, and there is no $(PYTHON) here; name one: make PYTHON=…" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "denoised needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=…" >&2; exit 1; }; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) makes no virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	}
