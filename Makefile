# Every recipe of the project. `make demo` and `make test` need nothing but make: they set up the rest.

PYTHON := .venv/bin/python
READY := .venv/ready
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help demo test check bench soak proto lock clean

help: ## list these recipes
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## show the whole system at work, on this machine
	demo/demo.sh

test: check ## check, then run every test but the soak; ARGS="-k name" goes to pytest
	$(PYTHON) -m pytest $(ARGS)

check: $(READY) ## lint, format, types, layers, and whether generated code is fresh
	ruff check
	ruff format --check
	mypy
	lint-imports
	$(PYTHON) scripts/generate_proto.py --check

bench: $(READY) bench/floor ## measure this machine against the targets, beside a floor in C and other tools
	$(PYTHON) bench/bench.py $(ARGS)

soak: $(READY) ## run the long sweeps that `make test` leaves out
	$(PYTHON) -m pytest -m soak --timeout=0 $(ARGS)

proto: $(READY) ## write the gRPC code again after a change of proto/
	$(PYTHON) scripts/generate_proto.py

lock: $(READY) ## write requirements.txt again after a change of the dependencies; ARGS=--upgrade takes new versions
	CUSTOM_COMPILE_COMMAND="make lock" pip-compile --quiet --all-extras --generate-hashes --allow-unsafe --strip-extras \
	  --no-emit-options --no-emit-index-url --no-emit-trusted-host --no-emit-find-links $(ARGS) \
	  --output-file requirements.txt pyproject.toml

clean: ## remove everything that a recipe has made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist bench/floor
	find src tests scripts bench -name __pycache__ -prune -exec rm -rf {} +

bench/floor: bench/floor.c | $(READY)
	$(CC) -O2 -Wall -Wextra -o $@ $<

# Instant once done, done again when what it installs has changed.
$(READY): requirements.txt pyproject.toml scripts/setup.sh
	scripts/setup.sh
	touch $@
