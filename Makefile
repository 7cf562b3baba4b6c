# The recipes; continuous integration calls the same ones. `make test` works on a bare machine with Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
STAMP := $(VENV)/.installed-for-tests
PYTEST := scripts/with-display.sh $(BIN)/python -m pytest

# `pip install .` into the same .venv replaces the live (editable) install that the tests need.
EDITABLE := $(wildcard $(VENV)/lib/python*/site-packages/__editable__*mdrn* $(VENV)/Lib/site-packages/__editable__*mdrn*)

.PHONY: test nightly lint bench build clean FORCE

# Lint first, tests last, so that pytest's closing line ends the output; either of them failing fails the target.
test: $(STAMP)
	@lint=0; $(MAKE) --no-print-directory lint || lint=1; \
	$(PYTEST) -q -m "not slow" $(ARGS) && test $$lint = 0

nightly: $(STAMP)
	@$(PYTEST) -m slow $(ARGS)

lint: $(STAMP)
	@failed=0; \
	$(BIN)/ruff check --quiet . || failed=1; \
	$(BIN)/mypy --no-error-summary || failed=1; \
	$(BIN)/lint-imports --no-logo >$(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log; failed=1; }; \
	if [ $$failed = 0 ]; then echo "lint: ruff, mypy and import-linter are content"; else echo "lint: FAILED (above)"; fi; \
	exit $$failed

bench: $(STAMP)
	@for part in quality speed memory; do echo "== $$part"; $(BIN)/python benchmarks/$$part.py $(ARGS) || exit 1; done

# The sdist, the wheel of this platform (with the compiled kernel, where there is a compiler) and one for all.
build: $(STAMP)
	$(BIN)/pip install -q -c constraints.txt build twine
	rm -rf dist
	$(BIN)/python -m build
	MDRN_PURE=1 $(BIN)/python -m build --wheel
	$(BIN)/twine check --strict dist/*

$(STAMP): pyproject.toml setup.py $(wildcard mdrn_plugin/networks/*.[ch]) training/kernel.c constraints.txt $(if $(EDITABLE),,FORCE)
	@sh scripts/system-packages.sh
	@test -x $(BIN)/python || test -x $(BIN)/python.exe || $(PYTHON) -m venv $(VENV)
	@echo "installing the package with its test tools into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
