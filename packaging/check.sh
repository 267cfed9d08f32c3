#!/usr/bin/env bash
# The fast part of the checks: run all of them, name those that fail, end with pytest's summary.
set -uo pipefail
failed=()

step() {
    local name=$1
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}

step format .venv/bin/python -m ruff format --check --quiet .
step lint .venv/bin/python -m ruff check --quiet .
step types .venv/bin/python -m mypy -p netplug
step imports .venv/bin/lint-imports --no-logo
# Doctests of the links, not of the folders they lead to: there is one name for each module.
step examples .venv/bin/python -m pytest --quiet --doctest-modules netplug
# Files at once: those with daemons and stores mostly wait.
step tests .venv/bin/python -m pytest --numprocesses 2 --dist loadfile tests

if [ ${#failed[@]} -gt 0 ]; then
    echo "check: failed: ${failed[*]}" >&2
    exit 1
fi
