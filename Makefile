# Every target does its own set-up; only Python 3.11 or newer, git and make are needed.

PYTHON ?= python3
VENV := build/venv
EXPORT_VENV := build/export-venv
DEVICE_VENV := build/device-venv
SERVER_VENV := build/server-venv
DEV_VENV := .venv
SAMPLE := samples/shapes
BUNDLE := build/shapes.bundle
PORT ?= 8000
PIP_FLAGS := --quiet --disable-pip-version-check --constraint constraints.txt
EVERYTHING := [cpu,verify,samples,completion,grammar,serve,video,dev]

# With the pip of an environment: build the wheel, and install it there.
define build_wheel
rm -rf build/lib build/bdist.* dist
$(1)/bin/python -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .
endef
define install_wheel
$(1)/bin/python -m pip install $(PIP_FLAGS) --no-deps --force-reinstall dist/*.whl
endef

.PHONY: help check test lint types wheel demo page house dev clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

check: lint test ## what CI runs: lint, and the tests against the built wheel

# The packages that the built wheel is tested with, and the tools; the wheel itself comes later.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing packages into $(VENV)"
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) '.$(EVERYTHING)'
	touch $@

# What exports and quantizes: without torch and transformers, which only `verify` and tests need.
$(EXPORT_VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(EXPORT_VENV)
	@echo "installing packages into $(EXPORT_VENV)"
	$(EXPORT_VENV)/bin/python -m pip install $(PIP_FLAGS) '.[cpu,export]'
	touch $@

# An environment that holds the runtime's packages and nothing else, as a device would.
$(DEVICE_VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEVICE_VENV)
	@echo "installing the runtime alone into $(DEVICE_VENV)"
	$(DEVICE_VENV)/bin/python -m pip install $(PIP_FLAGS) '.[cpu]'
	touch $@

# The runtime and what answers over HTTP.
$(SERVER_VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SERVER_VENV)
	@echo "installing the runtime and the server into $(SERVER_VENV)"
	$(SERVER_VENV)/bin/python -m pip install $(PIP_FLAGS) '.[cpu,serve]'
	touch $@

# The sample model's bundle, where `demo` has not made one.
$(BUNDLE)/manifest.json: | $(EXPORT_VENV)/ready
	$(call build_wheel,$(EXPORT_VENV))
	$(call install_wheel,$(EXPORT_VENV))
	$(EXPORT_VENV)/bin/paligemma-edge export $(SAMPLE)/checkpoint $(BUNDLE) --overwrite

dev: ## install the working tree, editable, into .venv
	$(PYTHON) -m venv $(DEV_VENV)
	$(DEV_VENV)/bin/python -m pip install $(PIP_FLAGS) --editable '.$(EVERYTHING)'

wheel: $(VENV)/ready ## build the wheel and install it into build/venv
	$(call build_wheel,$(VENV))
	$(call install_wheel,$(VENV))

demo: $(EXPORT_VENV)/ready $(DEVICE_VENV)/ready ## export the sample model and answer from it, without torch
	$(call build_wheel,$(EXPORT_VENV))
	$(call install_wheel,$(EXPORT_VENV))
	$(call install_wheel,$(DEVICE_VENV))
	$(EXPORT_VENV)/bin/paligemma-edge export $(SAMPLE)/checkpoint $(BUNDLE) --overwrite
	@echo "a first answer, before smaller variants are made:"
	$(DEVICE_VENV)/bin/paligemma-edge run $(BUNDLE) "caption en" samples/images/03.png
	$(EXPORT_VENV)/bin/paligemma-edge quantize $(BUNDLE) cpu-int8 --min-agreement 0.99
	$(EXPORT_VENV)/bin/paligemma-edge quantize $(BUNDLE) cpu-int4
	$(DEVICE_VENV)/bin/python samples/demo.py $(BUNDLE) samples/images build/demo

page: $(BUNDLE)/manifest.json $(SERVER_VENV)/ready ## serve the sample model, with a page to ask it on
	$(call build_wheel,$(SERVER_VENV))
	$(call install_wheel,$(SERVER_VENV))
	@echo "the page: http://127.0.0.1:$(PORT) (Ctrl-C ends it)"
	$(SERVER_VENV)/bin/paligemma-edge serve $(BUNDLE) --port $(PORT)

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
