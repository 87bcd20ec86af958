# Two commands on a fresh machine: `make demo` runs the main job on embedded data, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests run in as many processes as there are cores (8 at most), each file in one of them; `make test WORKERS=0` has one process.
WORKERS ?= auto
# One thread each: two processes with two threads on two cores wait for each other.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations=15 --durations-min=20

.PHONY: help install demo test check slow stress chaos hostile flood fuzz archive bench clean kills

help: ## Show what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## Make .venv with the package, pinned dependencies and development tools

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

demo: install ## Run four hospitals on embedded data and write a report
	$(BIN)/mammo-fed demo

test: install ## Run the fast tests
	$(PYTEST) -m "not slow and not browser and not gpu"

slow: install ## Run the slow and the browser tests
	$(PYTEST) -m "slow or browser"

check: install ## Format, lint, types, import layers, doctests and all tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -m "not gpu"

stress: install ## Run the long ledger trials: 300 kills of a site, 10,000 charges by 8 processes
	MAMMO_FED_STRESS=1 $(BIN)/python -m pytest -m slow -k ledger tests/privacy tests/client_side

chaos: install ## Thirty ordeals of real federations: kills, cut lines, power loss, full disks, lost files, lost sites (needs root)
	MAMMO_FED_CHAOS=30 $(BIN)/python -m pytest -s -m slow -k chaos tests/deploy

flood: install ## Throw 12,000 connections and 10 GB at a server's port while a run is in progress (needs root)
	MAMMO_FED_FLOOD=1 $(BIN)/python -m pytest -s -m slow -k flood tests/deploy

kills: install ## Kill a simulation at every moment, between any two steps of a site and the server, and resume it
	MAMMO_FED_ALL_MOMENTS=1 $(BIN)/python -m pytest -m slow -k resume tests/simulated

# The runs are kept in HOSTILE_RUNS: the same command goes on where it was stopped.
HOSTILE_RUNS ?= $(HOME)/mammo-fed-hostile

hostile: install ## Print what hostile sites cost, on the phantom and on the patches of MAMMO_DP_ROOT (about 170 runs each)
	$(BIN)/python simulations/hostile.py $(HOSTILE_RUNS) --data phantom
	test -z "$(MAMMO_DP_ROOT)" || $(BIN)/python simulations/hostile.py $(HOSTILE_RUNS) --data mammo_dp data.root=$(MAMMO_DP_ROOT)

fuzz: install ## Damage 20,000 DICOM files and 100,000 messages, and see that each is read or refused with a reason
	MAMMO_FED_FUZZ=20000 $(BIN)/python -m pytest -s -k fuzz tests/data/dicom
	MAMMO_FED_FUZZ=100000 $(BIN)/python -m pytest -s -k fuzz tests/federation

archive: install ## Kill the ingestion of 2,000 full-size mammograms in four encodings ten times, and resume it
	MAMMO_FED_ARCHIVE=2000 $(BIN)/python -m pytest -s -m slow -k killed tests/data/dicom/test_dicom_kills.py

bench: install ## Run the benchmarks; each prints a ratio
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

clean: ## Remove the environment and caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
