# What a contributor needs; see CONTRIBUTING.md. Everything is installed into .venv.
.PHONY: help check format test test-real docs bench ci

BIN := .venv/bin

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' $(MAKEFILE_LIST)

.venv: pyproject.toml
	python3 -m venv .venv
	$(BIN)/pip install --quiet -e '.[dev,docs]'
	@touch .venv

check: .venv  ## lint, format and types, as CI does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict --warn-unused-ignores tests/types/user_program.py
	$(BIN)/pyright -p tests/types --pythonpath $(BIN)/python

format: .venv  ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: .venv  ## the quick suite
	$(BIN)/python -m pytest -n auto

test-real: .venv  ## the suites with real Letta servers, OpenHands, frameworks, coding programs, a Collector (installs them once)
	$(BIN)/python -m pytest -m letta
	"$$($(BIN)/python -m tests.support.openhands_env)" -m pytest -m openhands tests/real/openhands
	$(BIN)/python -m pytest -m agents
	$(BIN)/python -m pytest -m 'programs or languages'
	$(BIN)/python -m pytest -m collector

docs: .venv  ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv  ## all benchmarks, as ratios inside one run
	$(BIN)/python -m benchmarks

ci:  ## all that CI does, in environments of its own
	bash .ci/run
