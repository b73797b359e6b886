# Every recipe of the project. `make demo` and `make test` need nothing but make: they set up the rest.

PYTHON := .venv/bin/python
READY := .venv/ready
VM_READY := .vm/ready
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help demo test test-vm vm-shell check bench soak proto openapi lock clean

help: ## list these recipes
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## show the whole system at work, on this machine
	demo/demo.sh

test: check $(VM_READY) ## check, then run every test but the soak; ARGS="-k name" goes to pytest
	$(PYTHON) -m pytest $(ARGS)

test-vm: $(READY) $(VM_READY) ## boot Debian's kernel on every layout of cgroups and run the tests there; ALL=1 runs all that it can decide
	$(PYTHON) -m pytest tests/vm -s $(if $(ALL),-m soak --timeout=0) $(ARGS)

vm-shell: $(READY) $(VM_READY) ## open a shell in such a machine; LAYOUT=v1, hybrid or v2
	$(PYTHON) vm/machine.py --layout $(or $(LAYOUT),v2)

check: $(READY) ## lint, format, types, layers, and whether generated code is fresh
	ruff check
	ruff format --check
	mypy
	lint-imports
	$(PYTHON) scripts/generate_proto.py --check
	$(PYTHON) scripts/write_openapi.py --check

bench: $(READY) bench/floor ## measure this machine against the targets, beside a floor in C and other tools
	$(PYTHON) bench/bench.py $(ARGS)

soak: $(READY) $(VM_READY) ## run the long sweeps that `make test` leaves out
	$(PYTHON) -m pytest -m soak --timeout=0 $(ARGS)

proto: $(READY) ## write the gRPC code again after a change of proto/
	$(PYTHON) scripts/generate_proto.py

openapi: $(READY) ## write docs/openapi.json again after a change of the HTTPS API
	$(PYTHON) scripts/write_openapi.py

lock: $(READY) ## write requirements.txt again after a change of the dependencies; ARGS=--upgrade takes new versions
	CUSTOM_COMPILE_COMMAND="make lock" pip-compile --quiet --all-extras --generate-hashes --allow-unsafe --strip-extras \
	  --no-emit-options --no-emit-index-url --no-emit-trusted-host --no-emit-find-links $(ARGS) \
	  --output-file requirements.txt pyproject.toml

clean: ## remove everything that a recipe has made
	rm -rf .venv .vm .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist bench/floor
	find src tests scripts bench -name __pycache__ -prune -exec rm -rf {} +

bench/floor: bench/floor.c | $(READY)
	$(CC) -O2 -Wall -Wextra -o $@ $<

# Instant once done, done again when what it installs has changed.
$(READY): requirements.txt requirements-sslyze.txt pyproject.toml scripts/setup.sh scripts/packages.sh
	scripts/setup.sh
	touch $@

# The script touches it itself, and only when nothing is missing.
$(VM_READY): scripts/setup_vm.sh
	scripts/setup_vm.sh
