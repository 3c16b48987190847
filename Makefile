# Two commands do everything, set-up included:  make demo   and   make test
PYTHON ?= python3
VENV   ?= .venv
WORKERS ?= 5
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TOOLS  := $(VENV)-installers
MARKDOWN := README.md CHANGELOG.md CONTRIBUTING.md docs benchmarks/README.md

# Where it is set, as in many container images, each process of the tests compiles every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test lint types unit crash foreign screenshots alerts airflow dist installed containers bench docs format clean
.DEFAULT_GOAL := help

help:          ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "batchcl needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "setting up $(VENV) (once, about a minute)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[emulator,report,otel]' --group dev
	@touch $@

setup: $(STAMP)  ## make the virtual environment

demo: $(STAMP)   ## train, score and analyse real images offline, in ./demo
	@$(BIN)/batchcl demo

test: lint       ## lint, types and all tests, as CI runs them
	@$(MAKE) --no-print-directory --jobs=2 types unit

lint: $(STAMP)   ## ruff, the layers of the packages, the format of Markdown, and the documentation as a site in site/
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mdformat --check $(MARKDOWN)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

types: $(STAMP)  ## mypy, strict
	@$(BIN)/mypy

unit: $(STAMP)   ## all tests
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

crash: $(STAMP)  ## 200 kills, 150 faults around a model's start and stop, 40 races, 4,000 seeds, 24 hours and a month in virtual time: an hour
	@BATCHCL_CRASH_CYCLES=200 BATCHCL_SOAK_S=600 $(BIN)/python -m pytest tests/crash
	@BATCHCL_CONCURRENT_SEEDS=2000 BATCHCL_MODEL_SEEDS=1000 BATCHCL_SOAK_HOURS=24 $(BIN)/python -m pytest \
	  --numprocesses $(WORKERS) --dist worksteal tests/sim/test_concurrent.py tests/sim/test_faults.py tests/sim/test_left_model.py \
	  tests/sim/test_long_run.py tests/sim/test_model_life.py tests/sim/test_soak.py tests/sim/test_two_writers.py
	@BATCHCL_MONTH_SCALE=10 $(BIN)/python -m pytest --capture=no tests/sim/test_month.py
	@HYPOTHESIS_EXAMPLES=1000 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m hypothesis \
	  tests/unit tests/sim/test_state_machine.py

$(TOOLS)/.installed:
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check build pipx twine uv
	@touch $@

dist: $(STAMP) $(TOOLS)/.installed  ## build sdist and wheel in dist/, check them, and run the demo from the wheel; PYTHON=python3.13 for another Python
	@rm -rf dist
	@$(TOOLS)/bin/python -m build
	@$(TOOLS)/bin/twine check --strict dist/*
	@BATCHCL_DIST=dist BATCHCL_DIST_PYTHON=$(PYTHON) BATCHCL_INSTALLERS=$(TOOLS)/bin $(BIN)/python -m pytest tests/installed/test_dist.py

installed: $(STAMP) $(TOOLS)/.installed  ## install wheel and sdist with pip, uv and pipx, with each extra, and try every command; needs a package index
	@BATCHCL_INSTALLERS=$(TOOLS)/bin $(BIN)/python -m pytest tests/installed/test_installed.py

foreign: $(STAMP)  ## read exports with Label Studio's SDK, supervision and datumaro, and tables with Spark, in a virtual environment of their own; needs Java 17
	@test -x $(VENV)-foreign/bin/python || $(PYTHON) -m venv $(VENV)-foreign
	@$(VENV)-foreign/bin/python -m pip install --quiet --disable-pip-version-check -r tests/foreign/requirements.txt
	@BATCHCL_FOREIGN_PYTHON=$(VENV)-foreign/bin/python $(BIN)/python -m pytest --capture=no tests/foreign

alerts:        ## check the Prometheus alerts and their test cases with promtool (Debian: prometheus)
	@cd configs/prometheus && promtool check rules batchcl.rules.yml && promtool test rules batchcl.test.yml

containers: $(STAMP)  ## check configs/ with cfn-lint and kubernetes-validate, run the Dockerfile's steps, and 200,000 images in 256 MB
	@test -x $(VENV)-containers/bin/python || $(PYTHON) -m venv $(VENV)-containers
	@$(VENV)-containers/bin/python -m pip install --quiet --disable-pip-version-check -r tests/containers/requirements.txt
	@$(VENV)-containers/bin/cfn-lint --include-checks I -- configs/cloudformation/batchcl.yaml
	@$(VENV)-containers/bin/kubernetes-validate --strict configs/kubernetes/cronjob.yaml
	@rm -rf build/image
	@$(BIN)/python tests/containers/build.py build/image
	@BATCHCL_CONTAINER_IMAGE=build/image BATCHCL_CONTAINER_IMAGES=200000 $(BIN)/python -m pytest --capture=no tests/containers

airflow: $(STAMP)  ## run the operators in a real Airflow, in a virtual environment of its own: 15 minutes
	@test -x $(VENV)-airflow/bin/python || $(PYTHON) -m venv $(VENV)-airflow
	@$(VENV)-airflow/bin/python -m pip install --quiet --disable-pip-version-check 'apache-airflow==3.3.2'
	@$(VENV)-airflow/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	@$(BIN)/mypy --python-executable $(VENV)-airflow/bin/python --follow-imports=silent src/batchcl/airflow.py configs/airflow/*.py
	@BATCHCL_AIRFLOW=$(abspath $(VENV))-airflow/bin/airflow $(BIN)/python -m pytest --capture=no tests/airflow3

bench: $(STAMP)  ## one table over all benchmarks, a quarter of an hour; BENCH='--full --write' for benchmarks/RESULTS.md
	@$(BIN)/python benchmarks/bench.py $(BENCH)

docs: $(STAMP)   ## rewrite the tables of docs/ that are generated, and make the site: open site/index.html
	@$(BIN)/python tests/job_table.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

screenshots: $(STAMP)  ## make the pictures of docs/images again; needs chromium
	@PYTHONPATH=tests $(BIN)/python tests/screenshots.py

format: $(STAMP) ## let ruff format and fix what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/mdformat $(MARKDOWN)

clean:         ## remove what the targets above made
	rm -rf $(VENV) $(VENV)-airflow $(VENV)-containers $(VENV)-foreign $(TOOLS) demo dist build site .ruff_cache \
	  .mypy_cache .pytest_cache .hypothesis
