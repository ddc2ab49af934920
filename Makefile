# Every target sets itself up: a virtual environment in .venv, with torch pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
export DDE_BACKEND = pytorch
# Small networks: two threads are no faster than one, and many times slower on a busy machine.
export OMP_NUM_THREADS = 1

.PHONY: demo test fuzz test-extras check bench docs notebooks dist matrix clean

demo: .venv/.installed
	rm -rf runs/demo
	$(BIN)/sciml-snr compare convection --optimizers adamw,snr_adam --seeds 2 --iterations 5000 --out runs/demo/convection
	$(BIN)/sciml-snr solve lynx_hare --iterations 5000 --out runs/demo/lynx_hare
	@echo "The demo's figures: runs/demo/convection/comparison.png, runs/demo/lynx_hare/figure.png"

test: .venv/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal

# 10,000 commands with nasty arguments and damaged files: about a quarter of an hour on one core.
fuzz: .venv/.installed
	$(BIN)/python -m benchmarks.fuzz

# The examples, with Lightning, accelerate and PINA; torch.compile; bench on Ray and Dask.
test-extras: .venv/.installed-extras
	$(BIN)/python -m pytest -n auto --dist worksteal tests/extras

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Each appends what its results file does not have yet; from nothing, all of it takes about a day on two cores.
bench: .venv/.installed-bench
	$(BIN)/sciml-snr bench benchmarks/zoo.toml --out benchmarks/results/zoo.csv
	$(BIN)/sciml-snr bench benchmarks/outliers.toml --out benchmarks/results/outliers.csv
	$(BIN)/sciml-snr bench benchmarks/goals.toml --out benchmarks/results/goals.csv
	$(BIN)/sciml-snr bench benchmarks/goals_burgers.toml --out benchmarks/results/goals_burgers.csv
	$(BIN)/sciml-snr bench benchmarks/goals_schroedinger.toml --out benchmarks/results/goals_schroedinger.csv
	$(BIN)/python -m benchmarks.gauss_newton_goals
	$(BIN)/python -m benchmarks.convection
	$(BIN)/python -m benchmarks.gauss_newton default 5
	$(BIN)/python -m benchmarks.gauss_newton "five times the seconds" 5 burgers burgers_inverse allen_cahn
	$(BIN)/sciml-snr bench benchmarks/zoo_long.toml --out benchmarks/results/zoo_long.csv
	$(BIN)/python -m benchmarks.heat
	$(BIN)/python -m benchmarks.curves
	$(BIN)/python -m benchmarks.images
	$(BIN)/python -m benchmarks.fields
	$(BIN)/python -m benchmarks.fit_images
	$(BIN)/python -m benchmarks.image_noise
	$(BIN)/python -m benchmarks.smooth_images
	$(BIN)/python -m benchmarks.fit_sdf
	$(BIN)/python -m benchmarks.networks
	$(BIN)/python -m benchmarks.stopping
	$(BIN)/python -m benchmarks.memorization
	$(BIN)/python -m benchmarks.prototype
	$(BIN)/python -m benchmarks.reliability
	$(BIN)/python -m benchmarks.replicas
	$(BIN)/python -m benchmarks.cost
	$(BIN)/python -m benchmarks.equal_time cost
	$(BIN)/python -m benchmarks.equal_time
	$(BIN)/python -m benchmarks.weights
	$(BIN)/python -m benchmarks.paper.phenomena
	$(BIN)/python -m benchmarks.paper.grokking
	$(BIN)/python -m benchmarks.paper.grokking_report
	$(BIN)/python -m benchmarks.paper.pinn
	$(BIN)/python -m benchmarks.paper.pixels
	$(BIN)/python -m benchmarks.paper.dpo
	$(BIN)/python -m benchmarks.pictures
	$(BIN)/python -m benchmarks.report

# The site, in site/. Notebooks are shown as they are; nothing is fetched.
docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

notebooks: .venv/.installed-docs
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb
	$(BIN)/python -m benchmarks.report

# Wheel and source archive in dist/, compared, installed into an empty environment and tried: about two minutes.
dist: .venv/dist-tools/.installed
	$(PYTHON) tests/check_dist.py .venv/dist-tools/bin/python

# Oldest and newest versions that pyproject.toml allows. Each downloads about 3 GB: not a part of .ci/run.
matrix: .venv/.installed
	$(BIN)/python tests/matrix.py

clean:
	rm -rf .venv runs build site

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

.venv/.installed-extras: .venv/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[extras]"
	touch $@

.venv/.installed-bench: .venv/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[bench,dpo]"
	touch $@

.venv/.installed-docs: .venv/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

.venv/dist-tools/.installed:
	$(PYTHON) -m venv .venv/dist-tools
	.venv/dist-tools/bin/pip install --quiet build twine "setuptools>=77"
	touch $@
