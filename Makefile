# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
# Needs Python 3.11 or newer with venv, and a C compiler (ARROWQUANT_NB_PURE=1 works without one).
PYTHON ?= python3
VENV := .venv
PURE_VENV := .venv-pure
BIN := $(VENV)/bin
PIP := -m pip install -q --disable-pip-version-check -c constraints.txt
OUT ?= demo-output
# comfy-kitchen, which the export for ComfyUI is compared with, as its 0.3 MB without CUDA kernels instead of 68 MB with.
PURE_KITCHEN = --no-deps --upgrade --only-binary=:all: --platform any --implementation py --abi none \
	--target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# Tests run side by side, one process a core; JOBS=0 runs them one after another in one process.
JOBS ?= auto
PYTEST := pytest -n $(JOBS) --dist loadfile
# setuptools would pack what an older tree left in its staging folders.
FRESH := rm -rf build/lib* build/bdist*
SOURCES := $(shell find arrowquant_nb kernels notebooks -type f -not -name '*.so' -not -path '*/__pycache__/*') setup.py pyproject.toml constraints.txt
# What must not depend on the compiled parts runs on both builds.
BOTH_BUILDS := tests/core tests/kernels tests/quantizers tests/storage

# Tests and their child processes use the installed package, never the tree they are started in.
export PYTHONSAFEPATH := 1
# Builds are pinned as well: the first is read by older pips, the second by newer ones.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt

# The two environments share one tree to build in.
.NOTPARALLEL:

.PHONY: help demo test test-compiled test-browser chromium test-pure lint soak bench bench-quality dev clean

help:
	@echo "make demo   install; quantize the bundled model in a notebook; say where the results lie"
	@echo "make test   install; lint; run the whole suite compiled, and its core on the pure build"
	@echo "make soak   the long tests        make bench  the benchmarks"
	@echo "make bench-quality  quality beside other quantizers, each installed in an environment of its own"
	@echo "make dev    editable install      make clean  remove what the others made"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(PURE_VENV)/bin/python:
	$(PYTHON) -m venv $(PURE_VENV)

# A requirement that is there already is not touched; the package itself is always built from this tree.
$(VENV)/.notebook: $(SOURCES) | $(VENV)/bin/python
	$(FRESH)
	$(BIN)/python $(PIP) ".[notebook]"
	touch $@

$(VENV)/.test: $(SOURCES) | $(VENV)/bin/python
	$(FRESH)
	$(BIN)/python $(PIP) ".[test]"
	$(BIN)/python $(PIP) $(PURE_KITCHEN) comfy-kitchen
	touch $@ $(VENV)/.notebook

$(PURE_VENV)/.test: $(SOURCES) | $(PURE_VENV)/bin/python
	$(FRESH)
	ARROWQUANT_NB_PURE=1 $(PURE_VENV)/bin/python $(PIP) ".[test-pure]"
	touch $@

demo: $(VENV)/.notebook
	mkdir -p $(OUT)
	$(BIN)/arrowquant run $(OUT)/02_quantize.ipynb --html -p output $(OUT)/digits-dit

test: lint test-compiled test-pure

test-compiled: $(VENV)/.test
	$(BIN)/python -c "import arrowquant_nb as aq; i = aq.build_info(); print(i); assert i['compiled_core'] and i['compiled_kernels']"
	$(BIN)/$(PYTEST) -m "not soak and not browser"
	$(MAKE) test-browser
	$(BIN)/pytest -m "not soak" --doctest-modules --pyargs arrowquant_nb
	ARROWQUANT_NB_ISA=scalar $(BIN)/$(PYTEST) -q tests/core tests/quantizers

# One after another, on an otherwise idle machine. Chromium is the machine's own.
test-browser: $(VENV)/.test chromium
	$(BIN)/pytest -m "browser and not soak" tests/browser

# Finds a Chromium, installs Debian's where it may, and says what to do where it may not.
chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable \
	|| if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; \
	then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null && command -v chromium; \
	else echo "no Chromium for the browser tests: install it, for example with: sudo apt-get install chromium"; fi

test-pure: $(PURE_VENV)/.test
	$(PURE_VENV)/bin/python -c "import arrowquant_nb as aq; i = aq.build_info(); print(i); assert not i['compiled_core'] and not i['compiled_kernels']"
	$(PURE_VENV)/bin/$(PYTEST) -m "not soak and not torch and not browser" $(BOTH_BUILDS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint --max-line-length 120 kernels
	$(BIN)/nbstripout --verify notebooks/*.ipynb

soak: $(VENV)/.test
	$(BIN)/pytest -m soak

# The benchmarks share functions among themselves.
bench: export PYTHONPATH := $(CURDIR)/tests/bench
bench: $(VENV)/.test
	$(BIN)/python tests/bench/bench_kernels.py
	$(BIN)/python tests/bench/bench_matmul.py
	$(BIN)/python tests/bench/bench_end_to_end.py
	$(BIN)/python tests/bench/bench_end_to_end.py --dtype float32
	$(BIN)/python tests/bench/bench_export.py
	$(BIN)/python tests/bench/bench_studio.py

# Peers get an environment each under the cache folder, kept for the next time; half an hour on two idle cores.
bench-quality: $(VENV)/.test
	mkdir -p $(OUT)
	$(BIN)/python tests/bench/quality --results $(OUT)/05_quality.json
	$(BIN)/arrowquant run notebooks/05_quality.ipynb $(OUT)/05_quality.ipynb --html -p results $(OUT)/05_quality.json

dev: | $(VENV)/bin/python
	$(BIN)/python $(PIP) -e ".[test]"

clean:
	rm -rf $(VENV) $(PURE_VENV) build dist demo-output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find arrowquant_nb notebooks tests -name __pycache__ -type d -prune -exec rm -rf {} +
	find arrowquant_nb -name '*.so' -delete
	rm -f arrowquant_nb__mypyc*.so
