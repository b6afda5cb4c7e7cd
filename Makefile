# Every target works from a fresh clone on Python 3.11 or newer with venv. The Python of
# .venv stays until another one is named: make test PYTHON=python3.13
PYTHON ?= $(if $(wildcard .venv/lib/python3.1[1-9]),.venv/bin/python,python3)
VERSION := $(shell $(PYTHON) -c 'import sys; v = sys.version_info; \
    print("%d.%d" % v[:2] if v >= (3, 11) else "is %d.%d.%d" % v[:3])' 2>/dev/null || echo cannot be run)
ifneq ($(words $(VERSION)),1)
$(error adadelta_tx needs Python 3.11 or newer; $(PYTHON) $(VERSION): \
make $(or $(MAKECMDGOALS),demo) PYTHON=python3.13)
endif

BIN := .venv/bin
# What is installed for one Python does not count for another: its folder is another.
INSTALLED := .venv/lib/python$(VERSION)
ACCELERATORS := .venv-accelerators/lib/python$(VERSION)/accelerators
EXTRAS := $(addprefix .venv/,bench docs examples comparison test)

.PHONY: demo test test-slow test-all test-one-pass test-docs docs check-docs lint bench accelerators test-accelerators \
    examples clean $(EXTRAS)

demo: .venv/bench
	$(BIN)/python -m benchmarks.demo

test: .venv/test
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: .venv/test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

test-all: test test-slow test-one-pass

# The core once more, with XLA's option for one pass; other tests count passes.
test-one-pass: .venv/test
	XLA_FLAGS=--xla_backend_extra_options=xla_cpu_use_multi_output_fusion \
	    $(BIN)/python -m pytest -n 2 --dist worksteal -m "not accelerators and not slow" \
	    --ignore tests/core/test_compiled.py tests/core

# The code blocks of the pages in docs, some with PyTorch and Keras. Those of a page
# share their names, so they stay together.
test-docs: .venv/test .venv/comparison
	$(BIN)/python -m pytest -n 2 --dist loadfile docs

docs: .venv/docs
	$(BIN)/python -m sphinx -W --keep-going docs docs/_build/html

# Looks at each page with Chromium, of the system or of CHROMIUM=/path/to/it.
check-docs: docs
	$(BIN)/python docs/check_pages.py

lint: .venv/test .venv/docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# QUICK=1 measures fewer cases.
bench: .venv/comparison
	$(BIN)/python -m benchmarks.step $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks.training $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks.stateful $(if $(QUICK),--quick)

accelerators: $(ACCELERATORS)
	.venv-accelerators/bin/python -m benchmarks.accelerators $(if $(QUICK),--quick)

test-accelerators: $(ACCELERATORS)
	.venv-accelerators/bin/python -m pytest -m accelerators tests/core/test_accelerators.py

# Only the tests: to look for doctests in a script is to run it.
examples: .venv/examples
	rm -rf results/examples
	$(BIN)/python -m pytest --noconftest -v -n 2 --dist worksteal examples/test_examples.py
	$(BIN)/python examples/table.py

clean:
	rm -rf .venv .venv-accelerators dist results .pytest_cache .ruff_cache .hypothesis \
	    docs/_build docs/_generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(EXTRAS): .venv/%: $(INSTALLED)/%

$(EXTRAS:.venv/%=$(INSTALLED)/%): $(INSTALLED)/%: pyproject.toml | $(INSTALLED)/site-packages/pip
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

# JAX loads the compilers wherever they are installed, so they have an environment.
$(ACCELERATORS): pyproject.toml | $(dir $(ACCELERATORS))site-packages/pip
	.venv-accelerators/bin/python -m pip install --quiet --editable '.[accelerators]'
	touch $@

%/lib/python$(VERSION)/site-packages/pip:
	$(PYTHON) -m venv --clear $* || { rm -rf $*; exit 1; }
