# Everything a contributor types. Nothing but make, git and Python 3.11 or later has to be there before.
SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin

VENV := .venv/installed
PYTEST := .venv/bin/python -m pytest
TESTS := integration
# Files of integration tests that run at once: each has hosts of its own, and mostly waits for engines.
WORKERS := $(if $(filter integration,$(TESTS)),2,0)

.PHONY: help setup check fmt test integration demo lab bench clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(VENV) ## install what is missing: Debian packages (as root), .venv with netplug and the tools
	@bash packaging/setup.sh system

$(VENV): pyproject.toml packaging/setup.sh
	@bash packaging/setup.sh venv
	@touch $@

check: $(VENV) ## format, lint, types, import contract, unit tests: no root needed
	@bash packaging/check.sh

fmt: $(VENV) ## format the code and apply the linter's safe fixes
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix-only --quiet .

test: setup check integration ## set-up, check, and the integration tests with a real dockerd (as root)

integration: setup ## the integration tests alone; ARGS="-k ping -x" and TESTS=FILE go to pytest
	@echo "== integration tests"
	@$(PYTEST) --numprocesses $(WORKERS) --dist loadfile $(TESTS) $(ARGS)

demo: setup ## the main job on a real dockerd, step by step, leaving no trace (as root)
	@.venv/bin/python integration/demo.py

lab: setup ## three hosts on one overlay: Docker, CNI, podman and a bare namespace (as root); LAB=FILE for another
	@bash examples/lab/show.sh $(LAB)

bench: setup ## measurements beside Docker's own bridge, the reference CNI plugins, and tunnels (as root)
	@bash packaging/setup.sh bench
	@.venv/bin/python bench/attach.py $(ARGS)
	@.venv/bin/python bench/memory.py
	@.venv/bin/python bench/cni.py
	@.venv/bin/python bench/ports.py
	@.venv/bin/python bench/heal.py
	@.venv/bin/python bench/overlay.py
	@.venv/bin/python bench/cluster.py
	@.venv/bin/python bench/dns.py --rounds 1 --seconds 2

clean: ## remove .venv, caches and build results
	@rm -rf .venv build dist *.egg-info .*_cache .hypothesis integration/.pytest_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
