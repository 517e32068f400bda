PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types unit clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	rm -rf out/demo
	$(BIN)/sagediff generate --model demo --prompts examples/prompts.txt --steps 30 --out out/demo
	@echo
	@echo "images:        out/demo/images/"
	@echo "contact sheet: out/demo/contact-sheet.png"
	@echo "report:        out/demo/report.json"

# Checks of seconds first; then mypy beside the tests, as it has one core's work only.
test: lint
	$(MAKE) --no-print-directory --jobs 2 types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

# As many processes as cores: each imports all libraries, and what Ray's tests start fills their waits. Compiled once for all
# of them, as some environments keep no bytecode.
unit: $(STAMP)
	$(BIN)/python -m compileall -q src
	$(BIN)/python -m pytest --numprocesses $$(nproc) --dist loadgroup --no-loadscope-reorder --durations 15

clean:
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache
