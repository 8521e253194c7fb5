VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TXM := $(VENV)/bin/txmcorrect

.PHONY: bench-quick bench-quality bench-shapes bench-grid bench-repeat bench-worlds bench-real regression peers install format lint type test test-slow test-gpu demo check clean bench-pair bench-uncon bench-restore bench-ct bench-guidance bench-ablation study bench-mosaic bench-finetune bench-families mosaic-peers bench-speed bench-tomo

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

# Tests are small: threads only wait for each other, the more the busier the machine is.
test test-slow: export OMP_NUM_THREADS = 1

test: lint type
	$(PY) -m pytest

test-slow: install
	$(PY) -m pytest -m slow

# Where there is a CUDA device.
test-gpu: install
	$(PY) -m pytest -m gpu

check: test

demo: install
	mkdir -p demo
	$(TXM) simulate demo/scan.h5 --kind mosaic-sparse --drift medium --seed 7 --overwrite
	$(TXM) correct demo/scan.h5 --out demo/corrected.h5 --overwrite
	$(TXM) evaluate demo/corrected.h5 --truth demo/scan.truth.h5

bench-pair: install
	$(PY) tests/bench/pair_table.py --write README.md

bench-uncon: install
	for u in 0.1 0.25 0.5; do \
	  $(TXM) train --config configs/pair-uncon-$$u.yaml --out runs/pair-uncon-$$u && \
	  $(PY) tests/bench/pair_table.py --model runs/pair-uncon-$$u/model.safetensors; done

# Weights that ship, from the simulator alone; each goes on where it was interrupted.
model-%: install
	$(TXM) train --config configs/$*.yaml --out runs/$*

# Restoration by the prior of samples against classical methods; BM3D comes in where it is installed
# (pip install bm3d; its licence allows research only), a regression of the same size with
# WITH="--regression runs/denoise-regression/model.safetensors" (configs/denoise-regression.yaml).
bench-restore: install
	mkdir -p bench
	$(PY) tests/bench/restore.py bundled --out bench/restore.json $(WITH)

# Few views and short arcs against FBP, SIRT and total variation; both planes against slices alone.
bench-ct: install
	mkdir -p bench
	$(PY) tests/bench/ct.py --out bench/ct.json
	$(PY) tests/bench/ct.py --volume --objects 3 --samples 2 --out bench/ct-volume.json
	$(PY) tests/bench/ct.py --volume --noisy 0.1 --objects 3 --samples 2 --out bench/noisy-volume.json

# Bias and spread of guidance where the posterior is known; its cost; memory of patches.
bench-guidance: install
	mkdir -p bench
	$(PY) tests/bench/guidance.py --out bench/guidance.json

# Position channels; patches against whole images. Trains six small networks.
bench-ablation: install
	$(PY) tests/bench/ablation.py

# Source 4's study: conditioning x guidance x noise level. Trains five small networks.
study: install
	$(PY) tests/bench/study.py

# Peers come in once `make mosaic-peers` was run; BaSiC's flat field with `make peers`.
ASHLAR := $(CURDIR)/.peers/ashlar/bin/python
MULTIVIEW := $(CURDIR)/.peers/multiview/bin/python
bench-mosaic: install
	mkdir -p bench
	$(if $(wildcard $(CURDIR)/.peers/basic/bin/python),TXMCORRECT_BASIC_PYTHON=$(CURDIR)/.peers/basic/bin/python) \
	  $(PY) tests/bench/mosaic.py --out bench/mosaic.json \
	  $(if $(wildcard $(ASHLAR)),--ashlar $(ASHLAR)) \
	  $(if $(wildcard $(MULTIVIEW)),--multiview $(MULTIVIEW)) $(WITH)

# Other stitchers, each in an environment of its own.
mosaic-peers:
	python3 -m venv .peers/ashlar && .peers/ashlar/bin/pip install --quiet ashlar
	python3 -m venv .peers/multiview && .peers/multiview/bin/pip install --quiet multiview-stitcher

# What training on one's own beamline gains: three simulated instruments, half an hour.
bench-finetune: install
	$(PY) tests/bench/finetune.py --out bench/finetune $(WITH)

# Against a plain read-divide-write; counts; peak memory. About half an hour on two cores.
bench-speed: install
	mkdir -p bench
	$(PY) tests/bench/speed.py --out bench/speed.json

# Slices, rings and planted spheres against eigen flats and interpolated references.
bench-tomo: install
	mkdir -p bench
	$(PY) tests/bench/tomogram.py --out bench/tomogram.json

# Comparison with peers: minutes (quick), an hour or two (core), a night (grid). The same command goes
# on where it was interrupted; cells whose code is unchanged are not run again, so a changed model or
# pipeline runs its own cells only. Peers of other packages come in once `make peers` was run; a
# regression with make bench-quality WITH="--regression runs/pair-regression/model.safetensors"; less
# with WITH="--seeds 3 --methods models". JOBS processes share the scans.
JOBS ?= $(shell nproc)
NABU := $(CURDIR)/.peers/nabu/bin/python
BASIC := $(CURDIR)/.peers/basic/bin/python
COMPARE := OMP_NUM_THREADS=1 \
  $(if $(wildcard $(NABU)),TXMCORRECT_NABU_PYTHON=$(NABU)) \
  $(if $(wildcard $(BASIC)),TXMCORRECT_BASIC_PYTHON=$(BASIC)) $(TXM) evaluate --compare --jobs $(JOBS)

bench-quick: install
	$(COMPARE) --plan quick --out bench/quick $(WITH)

bench-quality: install
	$(COMPARE) --plan core --out bench/core --readme README.md $(WITH)

# Large and odd frames: 1024 x 1024, 250 x 330, 2 x 640.
bench-shapes: install
	$(COMPARE) --plan shapes --out bench/shapes $(WITH)

bench-grid: install
	$(COMPARE) --plan grid --out bench/grid $(WITH)

# Other seeds, and how far the figures of both runs agree within their intervals.
bench-repeat: install
	$(COMPARE) --plan core --out bench/core --quiet $(WITH)
	$(COMPARE) --plan core --out bench/again --seed 1 --quiet $(WITH)
	$(PY) tests/bench/repeat.py bench/core/results.json bench/again/results.json

# Scans that our simulator did not draw: make bench-worlds WORLDS=DIR [SEEDS="1 2 3"] [LIST=FILE], a
# folder with worlds.py, score.py and run.py; LIST=tests/bench/worlds_beyond.txt goes beyond its own
# list, WITH=--slow adds large scans. Two hours for five seeds; goes on where it was interrupted.
SEEDS ?= 1 2 3 4 5
PEERS := OMP_NUM_THREADS=1 $(if $(wildcard $(NABU)),TXMCORRECT_NABU_PYTHON=$(NABU))
bench-worlds: install
	$(if $(WORLDS),,$(error expected a folder of worlds, got none: make bench-worlds WORLDS=DIR))
	$(PEERS) $(PY) tests/bench/worlds.py $(WORLDS) --seeds $(SEEDS) --jobs 2 \
	  $(if $(LIST),--list $(LIST)) $(WITH)

# make bench-real DIR=folder: the judgement on real scans; needs no truth. Without DIR: real references
# with known samples multiplied in, of the folder DATA; skipped where there is none.
DATA ?= ../shared/data
bench-real: install
	$(if $(DIR),$(COMPARE) --real $(DIR) --out bench/real $(WITH),\
	  $(PEERS) $(PY) tests/bench/real.py $(DATA) --jobs 2 $(WITH))

# Worlds by kind of drift and of sample, families left out of training: 189 worlds, an hour or two.
bench-families: install
	OMP_NUM_THREADS=1 $(PY) tests/bench/families.py $(WITH)

# Source 4's comparison: the same network on the same data, asked for the mean at once.
regression: install
	$(TXM) train --config configs/pair-regression.yaml --out runs/pair-regression

# Peers of other packages, each in an environment of its own.
peers:
	python3 -m venv .peers/nabu && .peers/nabu/bin/pip install --quiet nabu
	python3 -m venv .peers/basic && \
	  .peers/basic/bin/pip install --quiet -c constraints.txt basicpy 'scipy<1.13'
	@echo "export TXMCORRECT_NABU_PYTHON=$(CURDIR)/.peers/nabu/bin/python"
	@echo "export TXMCORRECT_BASIC_PYTHON=$(CURDIR)/.peers/basic/bin/python"

clean:
	rm -rf demo build dist .mypy_cache .pytest_cache .ruff_cache
