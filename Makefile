# make help lists the targets. PYTHON chooses the interpreter that .venv is made with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LIBRARY := lebm_kernels/_native.abi3.so
# Where there is a compiler, the tests take a missing extension for a failure.
NAMED_CXX := $(if $(filter default,$(origin CXX)),,$(firstword $(CXX)))
ANY_CXX := c++ || command -v g++ || command -v clang++
COMPILER := $(if $(shell command -v $(or $(NAMED_CXX),$(ANY_CXX))),1,0)
KERNELS := $(wildcard $(foreach kind,cpp h inl cu cuh,csrc/*.$(kind) csrc/*/*.$(kind) csrc/*/*/*.$(kind)))
EMULATOR := $(wildcard $(foreach kind,cpp h,tests/simt/*.$(kind)) tests/simt/*/*.cpp tests/simt/*/*.cuh)
SOURCES := $(KERNELS) $(EMULATOR) $(wildcard lebm_kernels/*/*.cpp tests/sanitizers/*.cpp)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test test-triton fuzz sanitize wheel wheel-test coverage docs bench gpu-check lint \
  format setup clean distclean say-run say-test say-docs say-bench FORCE

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' $(MAKEFILE_LIST)

run: say-run setup ## set up, train the ellipse and the horn, write the figures to out/
	@$(BIN)/python -m lebm_kernels demo

# Triton's kernels run in its interpreter, which a process has on or off. It is slow: `make test` runs
# the core of the operators' tests on it, `make test-triton` all.
TRITON := $(addprefix ops/test_,accuracy closed_forms gradients nan pytorch_contract posterior shapes) \
  kernels/test_triton_merging
# Then the lines of the package that either has reached are counted.
test: say-test setup ## set up, run all the tests, print their coverage
	@LEBM_KERNELS_EXPECT_NATIVE=$(COMPILER) $(BIN)/python -m pytest -q -n auto --dist worksteal \
	  -p no:benchmark --cov=lebm_kernels --cov-report=
	@$(MAKE) -s test-triton FILES='$(addprefix tests/,$(addsuffix .py,$(TRITON)))' \
	  COVERAGE='--cov=lebm_kernels --cov-append --cov-report='
	@$(MAKE) -s coverage

test-triton: setup ## run tests of the Triton backend in Triton's interpreter; FILES says which
	@! $(BIN)/python -c 'import triton' 2>/dev/null || TRITON_INTERPRET=1 \
	  $(BIN)/python -m pytest -q -n auto --dist worksteal -p no:benchmark -p no:cacheprovider \
	  -k '[triton' $(COVERAGE) $(FILES)

# Without Triton or a compiler much of the package is not reached, and is no fault.
LEAST ?= 0
coverage: setup ## print which lines the last `make test` has not reached; LEAST= per cent it must have
	@$(BIN)/python -m coverage report --skip-covered --show-missing --fail-under=$(LEAST)

docs: say-docs setup $(VENV)/sphinx ## set up, build the site of the documentation into out/docs
	@$(BIN)/python docs/make_site.py


# The seed is printed, for a run to be repeated: make fuzz CASES=20000 SEED=...
CASES ?= 20000
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
fuzz: setup ## put CASES random problems to the CPU backends (20000: 15 minutes or more); SEED repeats a run
	@seed=$(SEED); echo "make fuzz: CASES=$(CASES) SEED=$$seed"; LEBM_KERNELS_FUZZ_CASES=$(CASES) \
	  $(BIN)/python -m pytest -q -p no:benchmark --hypothesis-seed=$$seed tests/ops/test_fuzz.py

# With the operators' tests it takes some 12 minutes on two cores. FLAGS=-DLEBM_BASELINE_ALONE leaves
# the other instruction sets out; OPERATORS= leaves out all but the driver of the kernels.
OPERATORS := --operators
sanitize: setup ## run the CPU kernels under ASan, UBSan and TSan, and plant faults to be found
	@$(BIN)/python tests/sanitizers $(OPERATORS) $(if $(FLAGS),--flags='$(FLAGS)')

wheel: setup ## build the source distribution and the wheel into dist/
	@LEBM_KERNELS_NATIVE=1 $(BIN)/python -c "from setuptools import build_meta as b; \
	  print(b.build_sdist('dist')); print(b.build_wheel('dist'))"

# WITH is an interpreter that has PyTorch, of any version >= 2.10, and what the tests import.
WITH ?= $(BIN)/python
wheel-test: wheel ## install that wheel elsewhere and run the operators' tests on it; WITH says in which Python
	@$(BIN)/python tests/packaging/wheel.py "$$(ls -t dist/*.whl | head -n 1)" --python $(WITH)

bench: say-bench setup $(VENV)/peers ## set up, measure what the package aims for, print one table
	@$(BIN)/python bench/targets.py

# With the Python that is there: it takes no network. A card's PyTorch is a CUDA build.
gpu-check: ## on a machine with a CUDA GPU: build, test and time the GPU backends
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) bench/gpu_check.py

lint: setup ## check style, types and the formatting of the C++ sources
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(if $(SOURCES),$(BIN)/clang-format --dry-run -Werror $(SOURCES))

format: setup ## rewrite the sources in the house's style
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format
	$(if $(SOURCES),$(BIN)/clang-format -i $(SOURCES))

setup: $(VENV)/installed $(VENV)/built ## make .venv with the pinned dependencies and build the extension

clean: ## remove what was built (not .venv, not out/)
	rm -rf build dist *.egg-info $(LIBRARY) lebm_kernels/_native_build.txt lebm_kernels/_cuda_build.txt \
	  lebm_kernels/_native_compilers.txt $(VENV)/built
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis

distclean: clean ## remove .venv and out/ as well
	rm -rf $(VENV) out

say-run:
	@echo "make run: sets up $(VENV) where needed, trains the ellipse and the horn, writes figures to out/"

say-test:
	@echo "make test: sets up $(VENV) where needed, runs all the tests"

say-docs:
	@echo "make docs: sets up $(VENV) where needed, draws all figures, builds the site into out/docs"

say-bench:
	@echo "make bench: sets up $(VENV) where needed, measures for about 10 minutes; best left alone"

$(BIN)/python:
	@$(PYTHON) -c 'import sys' 2>/dev/null || { echo "error: PYTHON=$(PYTHON) does not run; \
	give a Python >= 3.10, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python >= 3.10 \
	is needed, and PYTHON=$(PYTHON) is" $$($(PYTHON) -V 2>&1)"; give another, as in: \
	make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: PYTHON=$(PYTHON) has no venv \
	module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Installed without the extension: pip would hide what the compiler says, and build before
# PyTorch is there. The next rule builds it into the source tree, which is what gets imported.
$(VENV)/installed: $(BIN)/python constraints.txt pyproject.toml setup.py
	@echo "Installing the pinned dependencies into $(VENV) (minutes, the first time)"
	@$(BIN)/python -m pip install -qq -c constraints.txt setuptools
	@LEBM_KERNELS_NATIVE=0 $(BIN)/python -m pip install -qq -c constraints.txt \
	  --no-build-isolation -e '.[test]'
	@rm -f $(VENV)/built
	@touch $@

# Tried again as long as there is no library: a compiler may have come.
$(VENV)/built: $(VENV)/installed $(KERNELS) $(if $(wildcard $(LIBRARY)),,FORCE)
	@echo "Building the extension (see lebm_kernels/_native_build.txt if it cannot be built)"
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

# What only the site needs: the extra "docs" of pyproject.toml.
$(VENV)/sphinx: $(VENV)/installed
	@echo "Installing Sphinx into $(VENV)"
	@$(BIN)/python -m pip install -qq -c constraints.txt furo myst-parser sphinx
	@touch $@

# A peer that only the benchmarks need.
$(VENV)/peers: $(VENV)/installed
	@echo "Installing KeOps into $(VENV)"
	@$(BIN)/python -m pip install -qq -c constraints.txt pykeops
	@touch $@
