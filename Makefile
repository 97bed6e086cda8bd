# make demo: the main job on embedded defaults. make test: all tests. Both set up what they need in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# one more than there are processors, as many tests wait for servers
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() + 1)')

.PHONY: demo test unit lint clean

demo: $(VENV)/installed
	$(BIN)/dicom-node demo --out demo-out

# a file's tests stay together, as they share servers; files in their order, as the long ones of acceptance come first
test: $(VENV)/installed-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

unit: $(VENV)/installed-test
	$(BIN)/python -m pytest tests/unit

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) demo-out build dist
