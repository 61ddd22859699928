# Everything is done in a virtual environment that is made here: nothing but Python 3.10+, a C compiler and the package
# index is needed. `make PYTHON=python3.12 ...` takes another interpreter, VENV another folder.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP    := $(BIN)/python -m pip --disable-pip-version-check
say     = @printf '\n==> %s\n' $(1)

.PHONY: docs record-compat help demo test test-frontend runtimes frontends lint bench fleet cost faults soak fuzz sanitize wheels floors peers architecture mutants clean

help:
	@echo "make demo    build, then a router streams from a worker, in two processes"
	@echo "make test    lint, types, and every test, real Dynamo workers included"
	@echo "make test-frontend  models behind Dynamo's real frontend, and the examples (installs torch)"
	@echo "make lint    ruff, mypy, and the stubs of the extension against the extension"
	@echo "make bench   the benchmarks of the codec and of the router, and their figures into the documents"
	@echo "make faults  every fault at every place of a conversation, on both backends and both event loops"
	@echo "make soak    300,000 mixed requests between two processes; fails on a slope of memory (SOAK_REQUESTS=n for fewer)"
	@echo "make fleet   routers of 1,000 and 10,000 workers, on each discovery, and their figures into docs/scaling.md"
	@echo "make cost    instructions of a frame, an item and a request against benchmarks/cost.json; RECORD=1 writes it (valgrind)"
	@echo "make fuzz    atheris on the codec and on the connections of both planes, each backend, FUZZ_SECONDS=60 each"
	@echo "make sanitize  the tests of the codec with every check: Python's, and ASan, UBSan and assertions in C (Linux)"
	@echo "make wheels  dist/: the sdist and its wheels, each tested on its own, for each Python found here"
	@echo "make floors  the tests with the lowest versions that pyproject.toml allows of what the package uses"
	@echo "make peers   .peers/: real Dynamo 1.3.1 and 1.6.1, each in an environment of its own, and their frontends"
	@echo "make docs    build/site: the documentation as a site; settings and errors are written from the code"
	@echo "make architecture  docs/figures/architecture.svg: the packages and who imports whom, from the code"
	@echo "make mutants  put each kept fault into the code: its test must fail (WORD=text: only those whose name, place or test has it)"
	@echo "make record-compat   tests/compat/expected: ask real Dynamo again"
	@echo "make clean   remove what was built"

demo: $(VENV)/.demo
	@$(BIN)/python -m dynamo_fast demo

# Two processes, each with whole files: most tests wait for a clock or for a peer. 0: one after the other, in this process.
WORKERS ?= 2
test: lint
	@$(MAKE) --no-print-directory runtimes || echo "==> no real Dynamo: the tests against it will be skipped"
	$(call say,"tests: $$($(BIN)/python -c 'from dynamo_fast import codec; print("codec backend", codec.BACKEND)')")
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m coverage run -m pytest -m "not frontend" -n $(WORKERS) --dist loadfile
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report --skip-covered

# Apart from `make test`, as the frontends and torch take long to install. A test may take some minutes (tests/conftest.py).
test-frontend: $(VENV)/.examples
	@$(MAKE) --no-print-directory runtimes frontends || echo "==> no real frontend: the tests against it will be skipped"
	$(call say,"models behind the real frontend")
	@$(BIN)/python -m pytest -m frontend -o faulthandler_timeout=1500

lint: $(VENV)/.test
	$(call say,"ruff")
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	$(call say,"mypy")
	@$(BIN)/mypy
	$(call say,"stubtest: the extension is what its .pyi says")
	@$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml dynamo_fast._codec

ROUNDS ?= 3
bench: $(VENV)/.bench runtimes
	@$(BIN)/python -m benchmarks.codec
	@$(BIN)/python -m benchmarks.router --rounds $(ROUNDS)
	@$(BIN)/python -m benchmarks.step --rounds $(ROUNDS)
	@$(BIN)/python -m benchmarks.report

# Half an hour; FLEET="--workers 1000" takes ten minutes.
fleet: $(VENV)/.bench
	@$(BIN)/python -m benchmarks.fleet $(FLEET)
	@$(BIN)/python -m benchmarks.report

faults: $(VENV)/.test
	$(call say,"every fault on the compiled codec")
	@FAULTS=all DYNAMO_FAST_BACKEND=cython $(BIN)/python -m pytest -q tests/faults
	$(call say,"every fault on the Python codec")
	@FAULTS=all DYNAMO_FAST_BACKEND=python $(BIN)/python -m pytest -q tests/faults

SOAK_REQUESTS ?= 300000
soak: $(VENV)/.test
	$(call say,"$(SOAK_REQUESTS) mixed requests")
	@$(BIN)/python -m tests.soak $(SOAK_REQUESTS)

# CASES="caller: an item" counts only the cases whose names begin so.
cost: $(VENV)/.test
	$(call say,"instructions against benchmarks/cost.json")
	@$(BIN)/python -m benchmarks.cost $(if $(RECORD),--record) $(if $(CASES),"$(CASES)")

# Either backend on its own: the search is led by the branches of the Python one, and its inputs run through both.
FUZZ_SECONDS ?= 60
PLANES := answers sessions acks requests controls inputs
fuzz: $(VENV)/.fuzz
	$(call say,"fuzzing the compiled codec for $(FUZZ_SECONDS) seconds")
	@$(BIN)/python -m tests.fuzz.codec cython -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1
	$(call say,"fuzzing the Python codec for $(FUZZ_SECONDS) seconds")
	@$(BIN)/python -m tests.fuzz.codec python -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1
	@for plane in $(PLANES); do for backend in cython python; do \
		printf '\n==> fuzzing the connections that carry %s with the %s codec for $(FUZZ_SECONDS) seconds\n' $$plane $$backend; \
		$(BIN)/python -m tests.fuzz.shells $$backend $$plane -max_total_time=$(FUZZ_SECONDS) -verbosity=0 \
			-print_final_stats=1 || exit 1; \
	done; done

# A copy of the tree, so that the extension with the sanitizers in it is never mistaken for the one that is used. Python
# itself has none, so their libraries come first by LD_PRELOAD, and its own allocator has to make way for theirs.
SANITIZED := build/sanitize
SANITIZE  := -fsanitize=address,undefined -fno-sanitize-recover=undefined
CODEC_TESTS := $(addprefix tests/test_codec,.py _edges.py _differential.py)
sanitize: $(VENV)/.test
	$(call say,"the codec as it is in development mode")
	@$(BIN)/python -X dev -m pytest -q $(CODEC_TESTS)
	$(call say,"the codec as it is with a memory allocator that looks for damage")
	@PYTHONMALLOC=debug $(BIN)/python -m pytest -q $(CODEC_TESTS)
	$(call say,"the codec with sanitizers and assertions in $(SANITIZED)")
	@rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	@cp -r setup.py pyproject.toml README.md LICENSE dynamo_fast tests $(SANITIZED)
	@find $(SANITIZED)/dynamo_fast -name '*.so' -delete
	@cd $(SANITIZED) && DYNAMO_FAST_BUILD=cython DYNAMO_FAST_DEBUG=1 CFLAGS="$(SANITIZE) -fno-omit-frame-pointer" \
		LDFLAGS="$(SANITIZE)" $(abspath $(BIN))/python -W ignore setup.py --quiet build_ext --inplace
	@nm -D $(SANITIZED)/dynamo_fast/_codec.*.so | grep -q __asan_ || { echo "no sanitizer was built in"; exit 1; }
	@cd $(SANITIZED) && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
		$(abspath $(BIN))/python -m pytest -q --capture=no -p no:cacheprovider -p no:faulthandler $(CODEC_TESTS)

wheels: $(VENV)/.wheels
	$(call say,"the distributions in dist/")
	@$(BIN)/python scripts/wheels.py

floors: $(VENV)/.test
	$(call say,"the lowest versions of what the package uses")
	@$(BIN)/python scripts/floors.py

mutants: $(VENV)/.test
	$(call say,"the kept mutants")
	@$(BIN)/python -m tests.mutants.run $(if $(WORD),"$(WORD)")

architecture: $(VENV)/.test
	@$(BIN)/python -m scripts.architecture

# Nothing is fetched when the site is read. A warning fails it: a link that leads nowhere, a page without a place.
docs: $(VENV)/.docs
	@DYNAMO_FAST_BACKEND=python $(BIN)/python -m scripts.reference
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "built build/site: to read it, $(BIN)/python -m http.server --directory build/site --bind 127.0.0.1 8000"

record-compat: runtimes $(VENV)/.test
	@$(BIN)/python -m tests.compat.record

peers: runtimes frontends

# ai-dynamo-runtime brings uvloop, on which the benchmarks run it.
runtimes: .peers/1.3.1/.done .peers/1.6.1/.done

frontends: .peers/frontend-1.3.1/.done .peers/frontend-1.6.1/.done

.peers/%/.done:
	$(call say,"Dynamo $* in .peers/$*")
	@$(PYTHON) -m venv .peers/$*
	@.peers/$*/bin/python -m pip --disable-pip-version-check install --quiet "ai-dynamo-runtime==$*"
	@touch $@

# What ai-dynamo needs, without aisimulate: on PyPI that is a placeholder, which fetches from another index. The frontend
# runs without it.
REQUIREMENTS := from importlib.metadata import requires; \
	print(*(each for each in requires("ai-dynamo") if "extra ==" not in each and "aisimulate" not in each), sep="\n")
.peers/frontend-%/.done:
	$(call say,"Dynamo $* with its frontend in .peers/frontend-$*")
	@$(PYTHON) -m venv .peers/frontend-$*
	@.peers/frontend-$*/bin/python -m pip --disable-pip-version-check install --quiet --no-deps "ai-dynamo==$*"
	@.peers/frontend-$*/bin/python -c '$(REQUIREMENTS)' >.peers/frontend-$*/requirements.txt
	@.peers/frontend-$*/bin/python -m pip --disable-pip-version-check install --quiet -r .peers/frontend-$*/requirements.txt
	@touch $@

# The extensions are built into the source tree; a change of them or of what is installed builds again.
TYPES   := $(shell find dynamo_fast -name "*.pxd")
SOURCES := setup.py pyproject.toml dynamo_fast/_codec.pyx $(TYPES) $(wildcard $(TYPES:.pxd=.py))

$(BIN)/python:
	$(call say,"a virtual environment in $(VENV)")
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(SOURCES) | $(BIN)/python
	$(call say,"building and installing dynamo_fast: its extensions take a minute or two")
	@$(PIP) install --quiet --editable ".[cli,gateway]"
	@touch $@

$(VENV)/.test: $(SOURCES) | $(BIN)/python
	$(call say,"building and installing dynamo_fast with the tools of its tests")
	@DYNAMO_FAST_BUILD=cython $(PIP) install --quiet --editable ".[test]"
	@touch $@

# A version of torch that a folder of wheels for the CPU has (PIP_FIND_LINKS); the package index has it for CUDA, with several
# GB, which works as well. The requirements of the extra are installed without the package, which is there: pip would build
# its extensions again.
EXTRA := from importlib.metadata import requires; \
	print(*(each.partition(";")[0] for each in requires("dynamo-fast") if "examples" in each), sep="\n")
$(VENV)/.examples: $(VENV)/.test
	$(call say,"installing what the examples need")
	@$(BIN)/python -c '$(EXTRA)' >$(VENV)/examples.txt
	@$(PIP) install --quiet "torch==2.13.0" -r $(VENV)/examples.txt
	@touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(call say,"installing dynamo_fast with what its documentation needs")
	@DYNAMO_FAST_BUILD=python $(PIP) install --quiet --editable ".[docs]"
	@touch $@

$(VENV)/.bench: $(SOURCES) | $(BIN)/python
	$(call say,"building and installing dynamo_fast with the yardsticks of its benchmarks")
	@DYNAMO_FAST_BUILD=cython $(PIP) install --quiet --editable ".[bench]"
	@touch $@

$(VENV)/.fuzz: $(VENV)/.test
	$(call say,"installing atheris")
	@$(PIP) install --quiet "atheris>=3.0"
	@touch $@

$(VENV)/.wheels: | $(BIN)/python
	$(call say,"installing build")
	@$(PIP) install --quiet "build>=1.2"
	@touch $@

clean:
	rm -rf $(VENV) .peers build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find dynamo_fast -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
