# make run    the app, from nothing: environment, models, page at http://127.0.0.1:7860
# make test   everything that can be tested on this machine
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: run models test lint bench pins clean

run: models
	@$(BIN)/python app.py $(ARGS)

models: $(VENV)/app.done
	@$(BIN)/python -m omni_app.engines.builtin.assets

test: $(VENV)/dev.done models lint
	@sh tests/ui/ensure_chromium.sh
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/dev.done
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(VENV)/dev.done models
	@sh tests/ui/ensure_chromium.sh
	@$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/python.done:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Omni needs Python 3.11 or newer; $$($(PYTHON) --version) was found. Name another: make PYTHON=python3.12 run"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing. On Debian and Ubuntu: sudo apt install python3-venv"; rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/app.done: requirements.txt | $(VENV)/python.done
	@echo "Installing the app (about 1 GB on disk) ..."
	@$(PIP) -r requirements.txt -q --progress-bar on
	@touch $@

$(VENV)/dev.done: requirements-dev.txt | $(VENV)/app.done
	@$(PIP) -r requirements-dev.txt -q
	@touch $@

pins:
	uv pip compile --universal --python-version 3.11 --no-annotate --no-header requirements.in -o requirements.txt
	uv pip compile --universal --python-version 3.11 --no-annotate --no-header requirements-dev.in -o requirements-dev.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
