# Everything a newcomer needs; each target is one plain command that may be typed instead.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint ui wheel
.DELETE_ON_ERROR:

demo: $(VENV)/installed ## a small, real comparison of composed stacks
	$(BIN)/capibench study demo

test: $(VENV)/installed ## all tests, with coverage
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term --cov-fail-under=80

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: $(VENV)/installed ## MLflow on the recorded runs
	$(BIN)/capibench ui

wheel: $(VENV)/installed
	$(BIN)/python -m pip wheel --no-deps -w dist .

# The constraints file pins versions that were proven together.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
