# Everything is done in a virtual environment that is made here: nothing but Python 3.10+, a C compiler and the package
# index is needed. `make PYTHON=python3.12 ...` takes another interpreter, VENV another folder.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
say     = @printf '\n==> %s\n' $(1)

.PHONY: help demo test lint bench peers clean

help:
	@echo "make demo    build, then a router streams from a worker, in two processes"
	@echo "make test    lint, types, and every test, real Dynamo workers included"
	@echo "make lint    ruff, mypy, and the stubs of the extension against the extension"
	@echo "make bench   the benchmarks of the codec and of the router"
	@echo "make peers   .peers/: real Dynamo 1.3.1 and 1.6.1, each in an environment of its own"
	@echo "make clean   remove what was built"

demo: $(VENV)/.demo
	@$(BIN)/python -m dynamo_fast demo

test: lint
	-@$(MAKE) --no-print-directory peers || echo "==> no real Dynamo: the tests against it will be skipped"
	$(call say,"tests: $$($(BIN)/python -c 'from dynamo_fast import codec; print("codec backend", codec.BACKEND)')")
	@$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(call say,"ruff")
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	$(call say,"mypy")
	@$(BIN)/mypy
	$(call say,"stubtest: the extension is what its .pyi says")
	@$(BIN)/python -m mypy.stubtest dynamo_fast._codec

bench: $(VENV)/.bench peers
	@$(BIN)/python -m benchmarks.codec
	@$(BIN)/python -m benchmarks.router

peers: .peers/1.3.1/.done .peers/1.6.1/.done

.peers/%/.done:
	$(call say,"Dynamo $* in .peers/$*")
	@$(PYTHON) -m venv .peers/$*
	@.peers/$*/bin/python -m pip --disable-pip-version-check install --quiet "ai-dynamo-runtime==$*"
	@touch $@

# The extension is built into the source tree; a change of it or of what is installed builds again.
SOURCES := setup.py pyproject.toml dynamo_fast/_codec.pyx

$(BIN)/python:
	$(call say,"a virtual environment in $(VENV)")
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(SOURCES) | $(BIN)/python
	$(call say,"building and installing dynamo_fast")
	@$(PIP) install --quiet --editable ".[cli]"
	@touch $@

$(VENV)/.test: $(SOURCES) | $(BIN)/python
	$(call say,"building and installing dynamo_fast with the tools of its tests")
	@DYNAMO_FAST_BUILD=cython $(PIP) install --quiet --editable ".[test]"
	@touch $@

$(VENV)/.bench: $(SOURCES) | $(BIN)/python
	$(call say,"building and installing dynamo_fast with the yardsticks of its benchmarks")
	@DYNAMO_FAST_BUILD=cython $(PIP) install --quiet --editable ".[bench]"
	@touch $@

clean:
	rm -rf $(VENV) .peers build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f dynamo_fast/*.so dynamo_fast/_codec.c
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
