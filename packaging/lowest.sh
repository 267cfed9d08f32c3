#!/usr/bin/env bash
# Run the unit tests with the lowest version of each dependency that pyproject.toml allows; setup.sh installs the newest.
# Its environment is build/lowest; PYTHON chooses the interpreter. Arguments go to pytest.
set -euo pipefail
folder=build/lowest
mkdir -p build
"${PYTHON:-.venv/bin/python}" -m venv --clear "$folder"
"$folder/bin/python" - >"$folder/constraints.txt" <<'END'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    for dependency in tomllib.load(file)["project"]["dependencies"]:
        name, lowest = re.match(r"([\w.-]+)>=([\w.]+)", dependency).groups()
        print(f"{name}=={lowest}")
END
echo "== build/lowest with $("$folder/bin/python" --version), $(paste -sd ' ' "$folder/constraints.txt")"
"$folder/bin/python" -m pip install --quiet --upgrade pip
"$folder/bin/python" -m pip install -qq --constraint "$folder/constraints.txt" --editable . --group dev
"$folder/bin/python" -m pip check
exec "$folder/bin/python" -m pytest --quiet --numprocesses 4 --dist loadfile --no-loadscope-reorder tests "$@"
