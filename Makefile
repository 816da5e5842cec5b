# `make help` lists the targets. PYTHON chooses the interpreter that .venv is made with. V=1 shows the
# compiler's command lines; otherwise only a command that fails is shown.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LIBRARY := lebm_kernels/_native.abi3.so
# Where there is a compiler, a missing extension fails the tests.
NAMED_CXX := $(if $(filter default,$(origin CXX)),,$(firstword $(CXX)))
ANY_CXX := c++ || command -v g++ || command -v clang++
COMPILER := $(if $(shell command -v $(or $(NAMED_CXX),$(ANY_CXX))),1,0)
cxx_files = $(shell find $(1) -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
KERNELS := $(call cxx_files,csrc)
SOURCES := $(KERNELS) $(call cxx_files,tests lebm_kernels)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test test-all test-triton fuzz sanitize wheel wheel-test coverage docs bench \
  gpu-check lint format setup clean distclean say-run say-test say-docs say-bench FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: say-run setup ## train the ellipse and the horn, write the figures to out/
	@$(BIN)/python -m lebm_kernels demo

# Triton's kernels run in its interpreter, which is on or off for a whole process. It is slow, so
# `make test` runs only these tests in it. Covered lines are counted outside the interpreter alone.
TRITON := $(addprefix ops/test_,accuracy closed_forms gradients nan pytorch_contract posterior shapes) \
  kernels/test_triton_merging
test: say-test setup ## run the tests, print their coverage
	@LEBM_KERNELS_EXPECT_NATIVE=$(COMPILER) $(BIN)/python -m pytest -q -n auto --dist worksteal \
	  -p no:benchmark --cov=lebm_kernels --cov-report=
	@$(MAKE) -s test-triton FILES='$(addprefix tests/,$(addsuffix .py,$(TRITON)))'
	@$(MAKE) -s coverage

test-all: ## run the tests with all combinations of parameters; takes much longer
	@LEBM_KERNELS_TEST_ALL=1 $(MAKE) -s test TRITON=

test-triton: setup ## run all tests of the Triton backend in Triton's interpreter; FILES selects some
	@! $(BIN)/python -c 'import triton' 2>/dev/null || TRITON_INTERPRET=1 \
	  $(BIN)/python -m pytest -q -n auto --dist worksteal -p no:benchmark -p no:cacheprovider \
	  -k '[triton' $(FILES)

# The default is 0 because without a compiler much of the package is not reached.
LEAST ?= 0
coverage: setup ## print the lines that the tests did not reach; LEAST=PERCENT asks for a minimum
	@$(BIN)/python -m coverage report --skip-covered --show-missing --fail-under=$(LEAST)

docs: say-docs setup $(VENV)/sphinx ## build the site of the documentation into out/docs
	@$(BIN)/python docs/make_site.py

# Prints the seed, so that a run can be repeated: make fuzz CASES=20000 SEED=...
CASES ?= 20000
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
fuzz: setup ## test the CPU backends on CASES random problems (20000: at least 15 minutes)
	@seed=$(SEED); echo "make fuzz: CASES=$(CASES) SEED=$$seed"; LEBM_KERNELS_FUZZ_CASES=$(CASES) \
	  $(BIN)/python -m pytest -q -p no:benchmark --hypothesis-seed=$$seed tests/ops/test_fuzz.py \
	  tests/ops/test_functional.py::test_any_numbers_have_their_limits

# Takes about 12 minutes on two cores. FLAGS=-DLEBM_BASELINE_ALONE omits the other instruction sets;
# OPERATORS= runs the driver of the kernels alone, without the operators' tests.
OPERATORS := --operators
sanitize: setup ## run the CPU kernels under ASan, UBSan and TSan; planted faults must be found
	@$(BIN)/python tests/sanitizers $(OPERATORS) $(if $(FLAGS),--flags='$(FLAGS)')

wheel: setup ## build the source distribution and the wheel into dist/
	@LEBM_KERNELS_NATIVE=1 $(BIN)/python -c "from setuptools import build_meta as b; \
	  print(b.build_sdist('dist')); print(b.build_wheel('dist'))"

# WITH is an interpreter with PyTorch (any version >= 2.10) and the packages that the tests import.
WITH ?= $(BIN)/python
wheel-test: wheel ## test the wheel without the source tree; WITH=PYTHON chooses the interpreter
	@$(BIN)/python tests/packaging/wheel.py "$$(ls -t dist/*.whl | head -n 1)" --python $(WITH)

# The file has each case as soon as it is measured, should the run be interrupted.
bench: say-bench setup $(VENV)/peers ## measure the package against its speed targets, print one table
	@mkdir -p out
	@$(BIN)/python bench/targets.py --json out/bench.json

# Runs offline, in the Python at hand if there is no .venv. That Python needs a CUDA build of PyTorch,
# setuptools and ninja.
gpu-check: ## on a machine with a CUDA GPU: build, test and time the GPU backends
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) bench/gpu_check.py

lint: setup ## check the style, the types and the formatting
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(if $(SOURCES),$(BIN)/clang-format --dry-run -Werror $(SOURCES))

format: setup ## format the sources
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format
	$(if $(SOURCES),$(BIN)/clang-format -i $(SOURCES))

setup: $(VENV)/installed $(VENV)/built ## make .venv with the pinned dependencies and build the extension

clean: ## remove build products and caches (not .venv, not out/)
	rm -rf build dist *.egg-info $(LIBRARY) lebm_kernels/_native_build.txt lebm_kernels/_cuda_build.txt \
	  lebm_kernels/_native_compilers.txt $(VENV)/built
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis

distclean: clean ## remove .venv and out/ as well
	rm -rf $(VENV) out

say-run:
	@echo "make run: sets up $(VENV) if needed, trains the ellipse and the horn, writes figures to out/"

say-test:
	@echo "make test: sets up $(VENV) if needed, runs the tests"

say-docs:
	@echo "make docs: sets up $(VENV) if needed, draws all figures, builds the site into out/docs"

say-bench:
	@echo "make bench: sets up $(VENV) if needed, measures for about 20 minutes; leave the machine idle meanwhile"

$(BIN)/python:
	@$(PYTHON) -c 'import sys' 2>/dev/null || { echo "error: PYTHON=$(PYTHON) does not run; \
	choose a Python >= 3.10, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python >= 3.10 \
	is needed, and PYTHON=$(PYTHON) is" $$($(PYTHON) -V 2>&1)"; choose another, as in: \
	make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: PYTHON=$(PYTHON) has no venv \
	module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Without the extension: pip would hide the compiler's messages, and build before PyTorch is
# installed. The next rule builds it in the source tree, from which the package is imported.
$(VENV)/installed: $(BIN)/python constraints.txt pyproject.toml setup.py
	@echo "Installing the pinned dependencies into $(VENV) (minutes, the first time)"
	@$(BIN)/python -m pip install -qq -c constraints.txt setuptools ninja
	@LEBM_KERNELS_NATIVE=0 $(BIN)/python -m pip install -qq -c constraints.txt \
	  --no-build-isolation -e '.[test]'
	@rm -f $(VENV)/built
	@touch $@

# Runs at every make while the library is missing: a compiler may have been installed since.
$(VENV)/built: $(VENV)/installed $(KERNELS) $(if $(wildcard $(LIBRARY)),,FORCE)
	@echo "Building the extension"
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

# Only the site needs these: the extra "docs" of pyproject.toml.
$(VENV)/sphinx: $(VENV)/installed
	@echo "Installing Sphinx into $(VENV)"
	@$(BIN)/python -m pip install -qq -c constraints.txt furo myst-parser sphinx
	@touch $@

# Only the benchmarks need it.
$(VENV)/peers: $(VENV)/installed
	@echo "Installing KeOps into $(VENV)"
	@$(BIN)/python -m pip install -qq -c constraints.txt pykeops
	@touch $@
