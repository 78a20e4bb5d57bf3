# Every target does its own set-up; only Python 3.11 or newer, git and make are needed.

PYTHON ?= python3
VENV := build/venv
DEVICE_VENV := build/device-venv
DEV_VENV := .venv
SAMPLE := samples/shapes
BUNDLE := build/shapes.bundle
PIP_FLAGS := --quiet --disable-pip-version-check --constraint constraints.txt
EVERYTHING := [cpu,export,samples,grammar,video,dev]

.PHONY: help check test lint types wheel demo house dev clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

check: lint test ## what CI runs: lint, and the tests against the built wheel

# The packages that the built wheel is tested with, and the tools; the wheel itself comes later.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing packages into $(VENV)"
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) '.$(EVERYTHING)'
	touch $@

# A second environment that holds the runtime's packages and nothing else, as a device would.
$(DEVICE_VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEVICE_VENV)
	@echo "installing the runtime alone into $(DEVICE_VENV)"
	$(DEVICE_VENV)/bin/python -m pip install $(PIP_FLAGS) '.[cpu]'
	touch $@

dev: ## install the working tree, editable, into .venv
	$(PYTHON) -m venv $(DEV_VENV)
	$(DEV_VENV)/bin/python -m pip install $(PIP_FLAGS) --editable '.$(EVERYTHING)'

wheel: $(VENV)/ready ## build the wheel and install it into build/venv
	rm -rf build/lib build/bdist.* dist
	$(VENV)/bin/python -m build --wheel --outdir dist . > build/wheel.log 2>&1 \
	    || { cat build/wheel.log; exit 1; }
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --no-deps --force-reinstall dist/*.whl

demo: wheel $(DEVICE_VENV)/ready ## export the sample model and answer from it, without torch
	$(DEVICE_VENV)/bin/python -m pip install $(PIP_FLAGS) --no-deps --force-reinstall dist/*.whl
	$(VENV)/bin/paligemma-edge export $(SAMPLE)/checkpoint $(BUNDLE) \
	    --mask-decoder $(SAMPLE)/checkpoint/vae-oid.npz --overwrite
	$(VENV)/bin/paligemma-edge quantize $(BUNDLE) cpu-int8 --min-agreement 0.99
	$(VENV)/bin/paligemma-edge quantize $(BUNDLE) cpu-int4
	$(DEVICE_VENV)/bin/python samples/demo.py $(BUNDLE) samples/images build/demo

test: wheel ## run the whole test suite against the built wheel, a worker for each core
	$(VENV)/bin/python -m pytest -n auto --dist worksteal $(PYTEST_FLAGS)

lint: $(VENV)/ready types ## ruff, mypy, and the contracts between rooms
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	MYPYPATH=build/types $(VENV)/bin/mypy -p paligemma_edge
	MYPYPATH=build/types $(VENV)/bin/mypy --explicit-package-bases tests samples
	PYTHONPATH=build/types $(VENV)/bin/lint-imports --no-cache --no-logo

# The package as it is once installed, by links: for mypy, and for whoever runs the working tree.
types:
	mkdir -p build/types/paligemma_edge
	for path in package/* export quantize runtime; do \
	    ln -sfn ../../../$$path build/types/paligemma_edge/; done
	ln -sfn ../../../samples/images build/types/paligemma_edge/sample_images

house: $(VENV)/ready types ## draw docs/house.png and its tables from the imports
	PYTHONPATH=build/types $(VENV)/bin/python -m tests.house.draw

clean: ## remove what was built
	rm -rf build dist *.egg-info $(DEV_VENV)
