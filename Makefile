# Two commands for newcomers: `make demo` runs the main job, `make test` passes the tests. Both set up all they need.
#   make demo ARGS="--seed 7 --eavesdropper intercept-resend"
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
WORKERS ?= 8
COVERAGE := 92
RUNS   ?= 100000
SEED   ?= 1
SOURCES := $(wildcard ext/*.pyx ext/*.pxd ext/optics/*.pyx ext/optics/*.pxd) setup.py pyproject.toml

.DEFAULT_GOAL := help
# A folder called qkdhw beside somebody's script must not hide the package: the checkout itself is on the path.
ON_PATH = $(BIN)/python -c "import pathlib, sysconfig; \
  pathlib.Path(sysconfig.get_path('purelib'), 'qkdhw-checkout.pth').write_text('$(CURDIR)\n')"

.PHONY: help demo test coverage judges sanitize bounds fuzz check bench docs format dist lock clean system

help:            ## show this list
	@sed -n 's/^\([a-z]*\): .*##/  make \1\t/p' Makefile

demo: $(VENV)/.run system ## the main job: two emulated QKD units to one key in two HSMs and a TLS session on it
	@$(BIN)/qkdhw demo $(ARGS)

test: $(VENV)/.dev system ## every test; they wait more than they work: eight at a time on two cores
	$(BIN)/pytest -n $(WORKERS) --maxschedchunk 1 $(ARGS)

coverage: $(VENV)/.dev system ## every test, and which lines they run; half as long again
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(WORKERS) --maxschedchunk 1 $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=$(COVERAGE)

judges: $(VENV)/.dev ## the compiled code under sanitizers, with every index checked, and fuzzed
	@$(MAKE) --no-print-directory --jobs=2 sanitize fuzz

# Builds of the kernels that see more, each in a folder of its own: build/judge/NAME.
build_judge = @mkdir -p build/judge && echo "building the kernels for make $@" && \
  $(1) $(BIN)/python setup.py -q build --build-base build/judge/$@ --build-lib build/judge/$@/lib >build/judge/$@.log 2>&1 || \
  { cat build/judge/$@.log; exit 1; }
kernel_tests = PYTHONPATH=$(CURDIR)/build/judge/$@/lib $(1) $(BIN)/pytest tests/kernels tests/judges/canary_$@.py \
  -q -n 2 -p no:randomly --capture=sys --hypothesis-profile=judges

sanitize: $(VENV)/.dev ## the kernel tests with gcc's sanitizers of addresses and undefined behaviour
	$(call build_judge,QKDHW_SANITIZE=1)
	$(call kernel_tests,LD_PRELOAD=$$(gcc -print-file-name=libasan.so) PYTHONMALLOC=malloc \
	  ASAN_OPTIONS=detect_leaks=0)

bounds: $(VENV)/.dev ## the kernel tests with every index checked
	$(call build_judge,QKDHW_CYTHON_DEBUG=1)
	$(call kernel_tests,)

fuzz: bounds     ## every decoder on what a fuzzer makes up: make fuzz RUNS=10000000 SEED=2 TARGETS="PtuDecoder csv"
	PYTHONPATH=$(CURDIR)/build/judge/bounds/lib $(BIN)/python tests/fuzz/campaign.py $(RUNS) $(SEED) $(TARGETS)

check: $(VENV)/.dev ## lint, format, types, imports, stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/stubtest --mypy-config-file pyproject.toml --allowlist tests/rules/stubtest_allowlist.txt \
	  --ignore-unused-allowlist $(addprefix qkdhw._core.,$(basename $(notdir $(wildcard ext/*.pyx)))) \
	  $(addprefix qkdhw_emulators._optics.,$(basename $(notdir $(wildcard ext/optics/*.pyx))))

bench: $(VENV)/.dev ## kernels against their NumPy oracles, as ratios measured in one run
	$(BIN)/pytest tests/benchmarks --benchmark-only --benchmark-disable-gc -p no:randomly -q $(ARGS)

format: $(VENV)/.dev ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dist: $(VENV)/.dev ## sdist and wheel in dist/, the wheel built from the sdist
	$(BIN)/python -m build --no-isolation

docs: $(VENV)/.dev ## write the generated parts of the unit pages
	$(BIN)/python docs/reference/units/generate.py

lock:            ## resolve the dependencies again (needs uv)
	uv pip compile pyproject.toml --all-extras --group build --universal --python-version 3.11 --generate-hashes \
	  --custom-compile-command "make lock" -o .ci/lock/run.txt
	uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 --generate-hashes \
	  -c .ci/lock/run.txt $(addprefix --no-emit-package ,s15lib python-usbtmc python-vxi11) --custom-compile-command "make lock" -o .ci/lock/dev.txt
	uv pip compile --group from-source --no-deps --universal --python-version 3.11 --generate-hashes \
	  --custom-compile-command "make lock" -o .ci/lock/from-source.txt

system:          ## Debian packages that the tests and the demo talk to
	@sh .ci/system-packages

clean:           ## remove what was built and set up
	rm -rf $(VENV) build dist *.egg-info demo-run demo-report.html
	rm -f qkdhw/_core/*.so emulators/_optics/*.so

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python .ci/lock/run.txt $(SOURCES)
	@if [ ! -e $(VENV)/.dev ]; then $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .ci/lock/run.txt; fi
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@$(ON_PATH)
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python .ci/lock/dev.txt .ci/lock/from-source.txt $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .ci/lock/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --use-pep517 --no-deps --require-hashes -r .ci/lock/from-source.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@$(ON_PATH)
	@touch $@ $(VENV)/.run
