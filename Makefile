# Two commands are enough on a fresh machine with Python 3.11, make and apt: `make demo` and `make test`.
# `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# .venv may be a link to a folder that the Unix users of jobs can reach (tools/install.sh says when); use its real path,
# which is also the one that scripts inside it name.
BIN = $(or $(realpath .venv),.venv)/bin
PY = $(BIN)/python
PYTEST = $(PY) -m pytest
say = printf '\n\033[1m==> %s\033[0m\n' $(1)
ifdef NO_COLOR
say = printf '\n==> %s\n' $(1)
endif

.PHONY: help install lint test test-real test-gpu soak bars demo test-deps break-contracts clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## make .venv with everything pinned in constraints.txt (quick when nothing changed)
	@tools/install.sh

test-deps: ## apt packages of the tests and benchmarks: only what is missing, and it says what is left out
	@tools/test_deps.sh

lint: install ## ruff, mypy --strict, import contracts, ratchets; all run, any failing fails
	@$(BIN)/python tools/lint.py

test: install test-deps ## the tests that need nothing but this machine (<= 12 minutes)
	@$(call say,'make test')
	HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-ci} $(PYTEST) -n 2 --dist loadfile $(ARGS)

test-real: install test-deps ## the tests that start real servers of others: PostgreSQL, Chromium, torchrun (<= 40 minutes)
	@$(call say,'make test-real')
	$(PYTEST) -m 'real and not soak and not gpu' --timeout 600 $(ARGS)

test-gpu: install ## the tests that need an NVIDIA GPU
	$(PYTEST) -m 'gpu and not soak' --timeout 600 $(ARGS)

FUZZED = tests/scheduling tests/capacity tests/jobs tests/reconcile tests/tenancy/test_plan.py tests/engines/test_launchers.py \
  tests/cost/test_plan.py tests/cost/test_allocation.py tests/cost/test_parts.py tests/cost/test_focus.py tests/cost/test_prices.py

soak: install test-deps ## long fault and fuzz runs; their report is what `make bars` reads
	@$(call say,'make soak')
	HYPOTHESIS_PROFILE=soak $(PYTEST) -m 'soak and not gpu' --timeout 7200 --soak-report=build/soak.json $(ARGS)
	@$(call say,'make soak: every property with 10000 cases')
	HYPOTHESIS_PROFILE=soak $(PYTEST) -m 'not real and not soak and not gpu' --fuzz -n 2 --timeout 7200 --soak-report=build/fuzz.json $(FUZZED)

bars: install test-deps ## measure every bar of a part: make bars PART=A [JSON=1] [ONLY=startup,submit]
	@$(PY) -m benchmarks.bars --part $(or $(PART),A) $(if $(JSON),--json) $(if $(ONLY),--only $(ONLY))

demo: install ## a 2-rank training that loses a rank and recovers; KEEP=1 leaves the server running for the browser
	@$(PY) -m tools.demo $(if $(KEEP),--keep)

break-contracts: install ## break each import contract on purpose in a copy, and see lint fail
	@$(PY) tools/break_contracts.py

clean: ## remove what make made
	@if [ -L .venv ]; then rm -rf -- "$$(readlink -f .venv)"; fi
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
