# Everything sets itself up first; all that is needed beforehand is Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo pictures test test-fast lint docs reference ui lock clean

demo: .venv/ready
	$(BIN)/python -m cvexp +experiment=demo
	$(BIN)/python -m cvexp task=neighbors
	$(BIN)/python -m cvexp -m +experiment=demo_segmentation task=multiclass,attention backbone.weights=latest:dino
	$(BIN)/python -m cvexp task=compare
	$(BIN)/python -m cvexp task=report

# The pictures of README.md and docs/; needs Chromium.
pictures: .venv/ready
	$(BIN)/python experiments/pictures.py

# Three processes are also best on two cores, because many tests wait for others; each takes up to 3 GB.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal

test-fast: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal -m "not slow"

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/ready
	$(BIN)/python -m website.build

# docs/configuration.md, from the YAML files, their comments, and the schema.
reference: .venv/ready
	$(BIN)/python -m website.reference

ui: .venv/ready
	$(BIN)/mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db

# The same versions for everybody; markers choose what Linux and macOS need.
lock: .venv/ready
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile -q --universal --no-header --no-annotate --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache
	find outputs -mindepth 1 ! -name .gitignore -delete

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cvexp needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -e .
	touch $@
