#!/usr/bin/env bash
# The fast checks: run all of them, print pytest's summary last, and name the checks that failed.
set -uo pipefail
failed=()

step() {
    local name=$1
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}

# Python compiles the tests on another core meanwhile.
.venv/bin/python -m pytest --quiet --collect-only tests >/dev/null 2>&1 &

step format .venv/bin/python -m ruff format --check --quiet .
step lint .venv/bin/python -m ruff check --quiet .
step types .venv/bin/python -m mypy -p netplug
step types-of-drivers .venv/bin/python -m mypy tests/built_in_drivers.py examples/driver/netplug_routed.py
step types-of-packaging env MYPYPATH=packaging .venv/bin/python -m mypy packaging/*.py
step imports .venv/bin/lint-imports --no-logo
# Doctests run through the symbolic links in netplug/, so that each module has only one name.
step examples .venv/bin/python -m pytest --quiet --doctest-modules netplug
wait
# Test files run in parallel, more than there are cores: those with daemons and stores mostly wait.
step "tests (the others: make matrices)" \
    .venv/bin/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder -m "not matrix" tests

if [ ${#failed[@]} -gt 0 ]; then
    echo "check: failed: ${failed[*]}" >&2
    exit 1
fi
