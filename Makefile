# Two commands for a newcomer: `make run` answers a question with a model split over two node processes, `make test` runs
# the whole suite. Both install what they need into .venv first.
PYTHON ?= python3
VENV ?= .venv
PROMPT ?= Why is the sky blue?
NODES ?= 2
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0

.PHONY: run test test-fast simulate check format proto install develop clean

run: $(VENV)/installed
	$(BIN)/shoal run "$(PROMPT)" --nodes $(NODES)

test: $(VENV)/developed
	$(BIN)/python -m pytest

test-fast: $(VENV)/developed
	$(BIN)/python -m pytest -m "not slow and not real"

check: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/developed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Whole clusters in a simulated network, one story per seed; a failing one is printed and can be replayed.
SEEDS ?= 20000
FIRST ?= 0
simulate: $(VENV)/developed
	$(BIN)/python -m shoal.testing.simulate --seeds $(SEEDS) --first $(FIRST)

proto: $(VENV)/developed
	cd src && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. shoal/control/cluster.proto

install: $(VENV)/installed
develop: $(VENV)/developed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("shoal needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: pyproject.toml CMakeLists.txt $(wildcard native/*) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# torch first and by itself: the test oracle needs the CPU build, nothing else does.
$(VENV)/developed: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --group dev --editable ".[onnx,openvino]"
	touch $@

clean:
	rm -rf $(VENV) build
