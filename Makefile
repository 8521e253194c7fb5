VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TXM := $(VENV)/bin/txmcorrect

.PHONY: install format lint type test test-slow demo check clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

format: install
	$(PY) -m ruff format txmcorrect tests
	$(PY) -m ruff check --fix txmcorrect tests

lint: install
	$(PY) -m ruff format --check txmcorrect tests
	$(PY) -m ruff check txmcorrect tests

type: install
	$(PY) -m mypy

test: lint type
	$(PY) -m pytest

test-slow: install
	$(PY) -m pytest -m slow

check: test

demo: install
	$(TXM) simulate demo/scan.h5 --kind mosaic-sparse --drift medium --seed 7 --overwrite
	$(TXM) correct demo/scan.h5 --out demo/corrected.h5 --condition pair --overwrite
	$(TXM) evaluate demo/corrected.h5 --truth demo/scan.truth.h5

clean:
	rm -rf demo build dist .mypy_cache .pytest_cache .ruff_cache
