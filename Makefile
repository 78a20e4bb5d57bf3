# Every target does its own set-up; only Python 3.11 or newer, git and make are needed.

PYTHON ?= python3
VENV := .venv
RUNTIME := build/runtime-venv
SAMPLE := samples/shapes
BUNDLE := build/shapes.bundle
IN_VENV := $(VENV)/bin/python
PIP_FLAGS := --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test lint types wheel dev benchmark clean

help:
	@echo "make demo       export the sample model and answer from it, without torch"
	@echo "make test       run the whole test suite against the built wheel"
	@echo "make lint       ruff and mypy"
	@echo "make dev        install the working tree, editable, into $(VENV)"
	@echo "make clean      remove what was built"

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing packages into $(VENV)"
	$(IN_VENV) -m pip install $(PIP_FLAGS) --editable '.[cpu,export,samples,dev]'
	touch $@

# A second environment that holds the runtime's packages and nothing else, as a device would.
$(RUNTIME)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RUNTIME)
	@echo "installing the runtime alone into $(RUNTIME)"
	$(RUNTIME)/bin/python -m pip install $(PIP_FLAGS) numpy pillow sentencepiece onnxruntime
	touch $@

dev: $(VENV)/ready
	$(IN_VENV) -m pip install $(PIP_FLAGS) --no-deps --editable .

wheel: $(VENV)/ready
	mkdir -p build
	rm -rf build/lib build/bdist.* dist
	$(IN_VENV) -m build --wheel --outdir dist . > build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }

demo: wheel $(RUNTIME)/ready
	$(RUNTIME)/bin/python -m pip install $(PIP_FLAGS) --no-deps --force-reinstall dist/*.whl
	$(IN_VENV) -m pip install $(PIP_FLAGS) --no-deps --force-reinstall dist/*.whl
	$(VENV)/bin/paligemma-edge export $(SAMPLE)/checkpoint $(BUNDLE) \
	    --mask-decoder $(SAMPLE)/checkpoint/vae-oid.npz --overwrite
	$(RUNTIME)/bin/python samples/demo.py $(BUNDLE) $(SAMPLE)/pictures build/demo

test: wheel
	$(IN_VENV) -m pip install $(PIP_FLAGS) --no-deps --force-reinstall dist/*.whl
	$(IN_VENV) -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/ready types
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	MYPYPATH=build/types $(IN_VENV) -m mypy \
	    -p paligemma_edge.export -p paligemma_edge.quantize -p paligemma_edge.runtime
	MYPYPATH=build/types $(IN_VENV) -m mypy --explicit-package-bases tests samples

# mypy does not follow the import hook of an editable install: it reads the folders by links.
types:
	mkdir -p build/types/paligemma_edge
	for folder in export quantize runtime; do \
	    ln -sfn ../../../$$folder build/types/paligemma_edge/$$folder; done

clean:
	rm -rf build dist *.egg-info $(VENV)
