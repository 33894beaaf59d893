# Everything a person types. `make demo` and `make test` each set up what they need, once.
PYTHON ?= python3
VENV ?= .venv
EXTRA ?= cpu
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRA)
export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1

.PHONY: demo test lint types bench docs setup constraints clean help

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## three SPPO iterations of the tiny recipe on this machine's CPU
	@$(BIN)/sppo run tiny --run demo --store var/store

test: $(READY)  ## all tests: real vLLM, DeepSpeed, PairRM and Prefect on small models
	@$(BIN)/pytest -q

lint: $(READY)  ## ruff: rules and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)  ## mypy --strict
	@$(BIN)/mypy

bench: $(READY)  ## the benchmarks that need no rival, quick form
	@for file in benchmarks/*.py; do $(BIN)/python $$file --quick || exit 1; done

docs: $(READY)  ## write the generated pages and figures of docs/ anew
	@$(BIN)/python docs/generate.py

setup: $(READY)  ## the environment in .venv, with vLLM for CPU (EXTRA=gpu for CUDA)

constraints: $(READY)  ## pin the newest compatible versions in constraints.txt
	@$(SOURCES) $(BIN)/uv pip compile pyproject.toml --extra app --extra cpu --extra blender --extra dev $(INDEX) --python-version 3.11 \
	  --no-header --no-annotate --no-emit-index-url --no-emit-package sppo -q -o constraints.txt
	@sed -i.old -e '/^-e/d' -e 's/+cpu$$//' constraints.txt && rm constraints.txt.old

clean:  ## remove what the demo wrote; the environment stays
	rm -rf var build

# uv, because the text-only environment leaves out torchvision and its kin, which pip cannot. uv does not read pip's settings, so
# the machine's own package sources are handed on; where it names none, torch's CPU build comes from PyTorch's own index.
SOURCES = eval "$$($(BIN)/python infra/package_sources.py $(EXTRA))";
INDEX = $$SPPO_UV_SOURCES

$(READY): pyproject.toml constraints.txt infra/package_sources.py
	@echo "Setting up $(VENV) (once; a few minutes where packages must be downloaded) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'uv>=0.9,<0.14' 2>&1 | grep -v '^WARNING' || true
	@$(SOURCES) $(BIN)/uv pip install -q --compile-bytecode $(INDEX) --python $(BIN)/python -c constraints.txt -e '.[app,$(EXTRA),blender,dev]'
	@rm -f $(VENV)/.ready-* && touch $@
