# All commands for contributors. They need only make, git and Python 3.11 or later.
SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin
# Python keeps what it compiled, also where the environment says otherwise: tests start it hundreds of times.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv/installed
SHIM := netplug/frontends/cni/cni-shim
PYTEST := .venv/bin/python -m pytest
TESTS := integration
# Number of integration test files that run in parallel: each has hosts of its own, and mostly waits for engines.
WORKERS := $(if $(filter integration,$(TESTS)),2,0)

.PHONY: help setup check matrices lowest fmt docs changelog test integration crash torn minority demo lab deb deb-lock deb-test engines soak plugin plugin-test fuzz hostile bench clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(VENV) ## install missing Debian packages (as root), and .venv with netplug and the tools
	@bash packaging/setup.sh system
	@$(MAKE) --no-print-directory $(SHIM)

# Without a compiler there is none, and `netplug cni install` writes Python.
$(SHIM): packaging/cni/shim.c packaging/cni/build.py
	@.venv/bin/python packaging/cni/build.py $@

$(VENV): pyproject.toml packaging/setup.sh
	@bash packaging/setup.sh venv
	@touch $@

check: $(VENV) ## check format, lint, types and imports, and run the unit tests; needs no root
	@bash packaging/check.sh

matrices: $(VENV) ## refuse, kill and mix use cases at each of their points, on a simulated kernel; needs no root; ARGS go to pytest
	@echo "== matrices"
	@$(PYTEST) --numprocesses 3 --dist load -m matrix tests $(ARGS)

lowest: $(VENV) ## run the unit tests with the lowest versions of the dependencies that are allowed; ARGS go to pytest
	@bash packaging/lowest.sh $(ARGS)

fmt: $(VENV) ## format the code and apply the linter's safe fixes
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix-only --quiet .

docs: $(VENV) ## write what documents have of the code: reference, options, REST API, netplug.toml
	@.venv/bin/python packaging/reference.py
	@.venv/bin/python packaging/settings_file.py

changelog: $(VENV) ## move the fragments in changes/ to the present version, and write CHANGELOG.md
	@.venv/bin/python packaging/changelog.py

test: setup check matrices integration ## run setup, check, matrices and integration (as root)

integration: setup ## run the integration tests with a real dockerd (as root); ARGS="-k ping -x" and TESTS=FILE go to pytest
	@echo "== integration tests"
	@$(PYTEST) --numprocesses $(WORKERS) --dist loadfile $(TESTS) $(ARGS)

crash: setup ## kill netplug after every step of all that it does, and count what is left (as root); ARGS="bridge --stride 5"
	@.venv/bin/python integration/crash.py --json build/crash.json $(ARGS)

torn: setup ## open torn copies of the database, and boot hosts that lost power (as root); COPIES=1000 CUTS=30
	@NETPLUG_TORN_COPIES=$(or $(COPIES),1000) $(PYTEST) -s --timeout 3600 tests/test_store_torn.py
	@NETPLUG_POWER_CUTS=$(or $(CUTS),30) $(PYTEST) -s integration/test_store_damage.py -k lost_power

minority: setup ## cut one of three hosts off with its member of etcd, and see what works meanwhile (as root); MINUTES=60
	@NETPLUG_MINORITY_MINUTES=$(or $(MINUTES),60) $(PYTEST) -s integration/test_minority.py $(ARGS)

demo: setup ## show the main functions on a real dockerd, step by step; leaves no trace (as root)
	@.venv/bin/python integration/demo.py

lab: setup ## show three hosts on one overlay: Docker, CNI, podman, a bare namespace (as root); LAB=FILE for another lab
	@bash examples/lab/show.sh $(LAB)

deb: $(VENV) ## build the Debian package into dist/, for Debian 12 and 13; installs what the build needs
	@bash packaging/setup.sh deb
	@.venv/bin/python packaging/debian/build.py $(ARGS)

deb-test: setup ## install, upgrade, remove and purge the Debian package on Debian 12 and 13 (as root); takes minutes
	@bash packaging/setup.sh deb
	@bash packaging/setup.sh roots
	@$(PYTEST) -m slow integration/test_deb_releases.py $(ARGS)

engines: setup ## kill dockerd, containerd, netplug or podman at each request to netplug (as root); takes an hour
	@$(PYTEST) -m slow integration/test_engine_faults.py $(ARGS)

soak: setup ## churn all runtimes on three hosts, with kills, and compare memory and objects at the end (as root); MINUTES=20
	@.venv/bin/python integration/soak.py --minutes $(or $(MINUTES),20) $(ARGS)

deb-lock: $(VENV) ## choose the newest libraries for the Debian package (packaging/debian/lock.txt)
	@.venv/bin/python packaging/debian/lock.py

plugin: $(VENV) ## build Docker's managed plugin into build/plugin (as root, on Debian; docs/plugin.md)
	@.venv/bin/python packaging/plugin/build_plugin.py build/plugin

plugin-test: setup ## build the managed plugin twice, and compare (as root, on Debian)
	@$(PYTEST) -m slow integration/test_managed_plugin.py $(ARGS)

# What breaks a rule is saved among the fixtures, where the unit tests run it from then on.
fuzz: $(VENV) ## look for packets and requests that are answered wrongly, for some more than MINUTES=10
	@failed=; for target in paths datagrams framing upstreams; do \
	    .venv/bin/python tests/dns_fuzzer.py $$target --seconds $$(( $(or $(MINUTES),10) * 15 )) \
	        --corpus build/fuzz/$$target --crashes tests/fixtures/dns_fuzz/$$target || failed="$$failed $$target"; \
	done; NETPLUG_FUZZ=10 $(PYTEST) --quiet --timeout=3600 tests/test_hostile_*.py || failed="$$failed requests"; \
	[ -z "$$failed" ] || { echo "fuzz: broken:$$failed; see tests/fixtures/dns_fuzz" >&2; exit 1; }

hostile: $(VENV) ## ask the APIs EXAMPLES=100 requests of each kind for each operation, out of SEED=…
	@NETPLUG_HOSTILE_EXAMPLES=$(or $(EXAMPLES),100) NETPLUG_HOSTILE_SEED=$(or $(SEED),$$RANDOM) \
	    $(PYTEST) -s integration/test_hostile_http.py $(ARGS)

bench: setup ## compare with Docker's own bridge, the reference CNI plugins, and other tunnels and name servers (as root)
	@bash packaging/setup.sh bench
	@.venv/bin/python bench/attach.py $(ARGS)
	@.venv/bin/python bench/path.py --docker-networks 200
	@.venv/bin/python bench/networks.py
	@.venv/bin/python bench/memory.py
	@.venv/bin/python bench/start.py
	@.venv/bin/python bench/cni.py
	@.venv/bin/python bench/ports.py
	@.venv/bin/python bench/heal.py
	@.venv/bin/python bench/load.py --endpoints 500 --networks 200 --seconds 20
	@.venv/bin/python bench/converge.py
	@.venv/bin/python bench/netlink.py
	@.venv/bin/python bench/overlay.py
	@.venv/bin/python bench/cluster.py
	@.venv/bin/python bench/dns.py --rounds 1 --seconds 2

clean: ## remove .venv, caches and build results
	@rm -rf .venv build dist $(SHIM) *.egg-info .*_cache .hypothesis integration/.pytest_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
