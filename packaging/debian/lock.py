"""Choose the libraries that the Debian package carries, and write them into lock.txt with their hashes.

The newest that pyproject.toml allows, and that all Pythons and machines of wheels.py have as a wheel. `make deb` takes
these and no others. Run `make deb-lock` to take updates, such as security fixes, and look at the difference. pip
decides by the Python that runs it which libraries need others: run it by the oldest, where they need the most.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from wheels import MACHINES, PYTHONS, for_target

LOCK = Path(__file__).with_name("lock.txt")
PROJECT = Path(__file__).parents[2]
HEAD = """\
# The libraries inside the Debian package, written by packaging/debian/lock.py.
# Pythons: {pythons}. Machines: {machines}.
"""


def main() -> None:
    hashes: dict[str, set[str]] = defaultdict(set)
    for python in PYTHONS:
        for machine in MACHINES.values():
            for pin, sha256 in chosen(python, machine):
                hashes[pin].add(sha256)
    names = [pin.partition("==")[0] for pin in hashes]
    if len(names) != len(set(names)):
        sys.exit(f"lock: several versions of one library: {', '.join(sorted(hashes))}")
    lines = [
        f"{pin} \\\n" + " \\\n".join(f"    --hash=sha256:{it}" for it in sorted(hashes[pin])) for pin in sorted(hashes)
    ]
    head = HEAD.format(pythons=" ".join(PYTHONS), machines=" ".join(MACHINES.values()))
    LOCK.write_text(head + "\n".join(lines) + "\n")


def chosen(python: str, machine: str) -> Iterator[tuple[str, str]]:
    """Yield what pip would install: `name==version`, and the wheel's SHA-256."""
    with tempfile.TemporaryDirectory() as empty:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
        command = [*pip, "--target", empty, *for_target(python, machine), *wanted()]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    for it in report["install"]:
        about = it["metadata"]
        yield (
            f"{about['name'].lower().replace('_', '-')}=={about['version']}",
            it["download_info"]["archive_info"]["hashes"]["sha256"],
        )


def wanted() -> list[str]:
    return list(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"])


if __name__ == "__main__":
    main()
