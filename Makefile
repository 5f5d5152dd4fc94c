# make run    the app, from nothing: environment, models, page at http://127.0.0.1:7860
# make test   everything that can be tested on this machine
# make test-all   the same with the quantizer's and the transformers engine's environments (4 GB)
# make serve MODEL=folder   serve Qwen3-Omni on this machine's GPU with vLLM-Omni
PYTHON ?= python3
VENV   ?= .venv
SERVE_PYTHON ?= python3.12
SERVE_VENV   ?= .venv-serve
# Tests that run at once. Half their time is waiting; more than there are processors makes them slower.
WORKERS ?= 2
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: run serve models test test-all pytest chromium lint bench pins clean quantize-env test-quantize transformers-env run-transformers test-transformers space audit

run: models
	@$(BIN)/python app.py $(ARGS)

# A model that cannot be served here is told of before gigabytes are installed for it.
serve: $(VENV)/app.done
ifeq (,$(findstring --only-plan,$(ARGS)))
	@if [ -n "$(MODEL)" ] && [ ! -e $(SERVE_VENV)/serve.done ]; then \
	  $(BIN)/python -m omni_app serve "$(MODEL)" --only-plan $(ARGS) > /dev/null; fi
	@$(MAKE) --no-print-directory $(SERVE_VENV)/serve.done
endif
	@if [ -n "$(MODEL)" ]; then exec $(BIN)/python -m omni_app serve "$(MODEL)" --serve-venv $(SERVE_VENV) $(ARGS); \
	else echo "$(SERVE_VENV) is built. Now name the model's folder: make serve MODEL=path/to/model"; fi

models: $(VENV)/app.done
	@$(BIN)/python -m omni_app.engines.builtin.assets

test: lint pytest

# The linters work on one processor while pip fills the other environments on the second.
test-all:
	@$(MAKE) --jobs=2 lint quantize-env models chromium transformers-env
	@$(MAKE) pytest

pytest: $(VENV)/dev.done models chromium
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

chromium:
	@sh tests/ui/ensure_chromium.sh

lint: $(VENV)/dev.done
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(VENV)/dev.done models chromium
	@$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/python.done:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Omni needs Python 3.11, 3.12 or 3.13; $$($(PYTHON) --version) was found. Name another: make PYTHON=python3.12 run"; exit 1; }
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

$(SERVE_VENV)/serve.done: requirements-serve.txt
	@$(SERVE_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || \
	  { echo "vLLM-Omni's pins are for Python 3.12. Install it, or name it: make SERVE_PYTHON=/path/to/python3.12 serve"; exit 1; }
	@$(SERVE_PYTHON) -m venv $(SERVE_VENV)
	@echo "Installing vLLM-Omni (several gigabytes) ..."
	@$(SERVE_VENV)/bin/python -m pip install --disable-pip-version-check -r requirements-serve.txt -q --progress-bar on
	@touch $@

# The quantizer's own interpreter. torch first and by name, so that your package index decides on CPU or CUDA.
quantize-env:
	@[ ! -e .venv-quantize/ready ] || OMNI_QUANTIZE_PYTHON= OMNI_QUANTIZE_VENV= $(PYTHON) -m quantize.environment \
	  || rm .venv-quantize/ready
	@$(MAKE) --no-print-directory .venv-quantize/ready

.venv-quantize/ready: quantize/requirements.txt
	@$(PYTHON) -m venv .venv-quantize
	@echo "Installing the quantizer (about 2 GB on disk) ..."
	@.venv-quantize/bin/python -m pip install --disable-pip-version-check -q "$$(grep '^torch==' $<)"
	@.venv-quantize/bin/python -m pip install --disable-pip-version-check -q -r $<
	@touch $@

test-quantize: $(VENV)/dev.done quantize-env
	@$(BIN)/python -m pytest tests/quantize $(ARGS)

# App and transformers engine in one interpreter; torch first and by name, as above.
transformers-env: .venv-transformers/ready

.venv-transformers/ready: requirements-transformers.txt
	@$(PYTHON) -m venv .venv-transformers
	@echo "Installing the app with transformers (about 2 GB on disk, 5 GB more where torch brings CUDA) ..."
	@.venv-transformers/bin/python -m pip install --disable-pip-version-check -q "$$(grep '^torch==' $<)"
	@.venv-transformers/bin/python -m pip install --disable-pip-version-check -q -r $<
	@touch $@

# make run-transformers MODEL=folder [PRECISION=nf4]
PRECISION ?= bf16
run-transformers: transformers-env
	@OMNI_ENGINE=transformers OMNI_TRANSFORMERS_MODEL="$(MODEL)" OMNI_TRANSFORMERS_PRECISION=$(PRECISION) \
	  .venv-transformers/bin/python app.py $(ARGS)

test-transformers: $(VENV)/dev.done transformers-env
	@$(BIN)/python -m pytest -m transformers tests/engines $(ARGS)

pins:
	uv pip compile --universal --python-version 3.11 --no-annotate --no-header requirements.in -o requirements.txt
	uv pip compile --universal --python-version 3.11 --no-annotate --no-header requirements-dev.in -o requirements-dev.txt
	# Without what only CUDA builds of torch bring along.
	uv pip compile --universal --python-version 3.11 --no-annotate --no-header requirements-transformers.in \
	  | grep -v '^\(nvidia-\|cuda-\|triton\|setuptools\)' > requirements-transformers.txt
	# The list is the same for aarch64; openai-whisper alone is published as source only.
	uv pip compile --python-platform x86_64-manylinux_2_35 --python-version 3.12 --only-binary :all: \
	  --no-binary openai-whisper --no-annotate --no-header requirements-serve.in -o requirements-serve.txt

# The files of a Hugging Face Space, laid out in a new folder: make space FOLDER=../omni-space
space: $(VENV)/app.done
	@$(BIN)/python -m omni_app space "$(or $(FOLDER),build/space)"

# Known vulnerabilities of everything pinned, bills of materials and licences: in build/audit.
audit: $(VENV)/app.done .venv-audit/ready
	@.venv-audit/bin/python .ci/audit.py build/audit $(BIN)/python requirements.txt requirements-serve.txt quantize/requirements.txt

.venv-audit/ready: .ci/audit-requirements.txt
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --disable-pip-version-check -q -r $<
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
