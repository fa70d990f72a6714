# Everything runs in a virtual environment of the checkout, built at first need.
VENV ?= .venv
PYTHON := $(VENV)/bin/python
export RAY_USAGE_STATS_ENABLED = 0

# Processes that run tests side by side, file by file. Tests with Ray wait half of their time.
WORKERS ?= 2
test: WORKERS = 3
PYTEST := $(PYTHON) -m pytest
BESIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help install tune compare ui docs check test test-fast coverage chaos cluster-test

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

install: $(VENV)/installed  ## build the environment

$(VENV)/installed: pyproject.toml
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --editable '.[dev]'
	touch $@

tune: install    ## the main job: search token pooling and attention sharing on digits
	$(PYTHON) jobs/tune_psvit.py $(ARGS)

compare: install ## the winner of a search against DeiT over several seeds: ARGS="--search NAME"
	$(PYTHON) jobs/compare_psvit.py $(ARGS)

ui: install      ## MLflow on the default store
	$(VENV)/bin/mlflow ui --backend-store-uri "$$($(PYTHON) -c 'from pathlib import Path; from psvit_ray.runtime.tracking.store_uri import sqlite_uri; print(sqlite_uri(Path("outputs/mlflow.db")))')"

docs: install    ## the pages, into build/docs; fails on a broken link or an unknown name
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

check: install docs ## formatting, lint, types, plain words, the pages
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PYTHON) -m tests.helpers.plain_words

test: install    ## all tests but the two kinds below, with a real Ray and a real MLflow
	$(PYTEST) $(BESIDE) $(ARGS)

test-fast: install ## the tests that start neither Ray nor another process
	$(PYTEST) $(BESIDE) -m 'not processes and not chaos and not cluster' $(ARGS)

coverage: install ## lines and branches that the fast tests do not reach
	$(PYTEST) $(BESIDE) -m 'not processes and not chaos and not cluster' --cov --cov-report term:skip-covered $(ARGS)

chaos: install   ## the long tests of faults: killed ten times, hosts that come and go
	$(PYTEST) -m chaos $(ARGS)

cluster-test: install ## tests on hosts that are namespaces of this one, as root: submitted, cut off, lost
	$(PYTEST) -m 'cluster and not chaos' $(ARGS)
