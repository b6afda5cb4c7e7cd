# Every target works from a fresh clone on Python 3.11 or newer with venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench accelerators test-accelerators examples clean

demo: .venv/bench
	$(BIN)/python -m benchmarks.demo

test: .venv/test
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# QUICK=1 measures fewer cases.
bench: .venv/peers
	$(BIN)/python -m benchmarks.step $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks.training $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks.stateful $(if $(QUICK),--quick)

accelerators: .venv-accelerators/installed
	.venv-accelerators/bin/python -m benchmarks.accelerators $(if $(QUICK),--quick)

test-accelerators: .venv-accelerators/installed
	.venv-accelerators/bin/python -m pytest -m accelerators tests/test_accelerators.py

examples: .venv/examples
	rm -rf results/examples
	$(BIN)/python -m pytest --noconftest -v -n 2 --dist worksteal examples
	$(BIN)/python examples/table.py

clean:
	rm -rf .venv .venv-accelerators dist results .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bench .venv/examples .venv/peers .venv/test: .venv/%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# JAX loads the compilers wherever they are installed, so they have an environment.
.venv-accelerators/installed: pyproject.toml
	test -x .venv-accelerators/bin/python || $(PYTHON) -m venv .venv-accelerators
	.venv-accelerators/bin/python -m pip install --quiet --editable '.[accelerators]'
	touch $@
