"""`netplug __complete KIND`: the names of what there is, one a line, each with a tab and what it is.

It is called while the user waits, and says nothing where there is no daemon.
"""

import contextlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from netplug.cli import OK, CliError
from netplug.cli.client import Client

_DEADLINE_S = 2.0
"""Longer, and the user would take the shell for hung."""
_PLAIN = re.compile(r"[A-Za-z0-9_.:@%+-][A-Za-z0-9_.:@%+/-]*")
"""Names that mean themselves in every shell; others are not offered, since bash inserts them as they are."""
_NAMESPACES = Path("/run/netns")
Rows = Iterator[tuple[str, str]]


def show(words: Sequence[str]) -> int:
    """Print the values of a kind; nothing on any error."""
    run_dir = Path(os.environ.get("NETPLUG_RUN_DIR") or "/run/netplug")
    with contextlib.suppress(CliError, OSError, KeyError, TypeError):
        kind = _KINDS[words[0]] if words else _none
        lines = [f"{name}\t{' '.join(note.split())}" for name, note in kind(run_dir) if _PLAIN.fullmatch(name)]
        if lines:
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()
    return OK


def _none(run_dir: Path) -> Rows:  # noqa: ARG001 - as all kinds
    yield from ()


def _ask(run_dir: Path, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Client(run_dir.absolute(), _DEADLINE_S).get(path)[path]
    return found


def _networks(run_dir: Path) -> Rows:
    for row in _ask(run_dir, "networks"):
        subnets = ", ".join(subnet["subnet"] for subnet in row["subnets"])
        yield row["name"] or row["id"], f"{row['mode']} {subnets}"


def _endpoints(run_dir: Path) -> Rows:
    """Yield names, with their networks where several endpoints have one name; without a name, the id."""
    rows = _ask(run_dir, "endpoints")
    times = Counter(row["name"] for row in rows)
    for row in rows:
        name = row["name"] if times[row["name"]] == 1 else f"{row['network']}/{row['name']}"
        addresses = ", ".join(address.partition("/")[0] for address in row["addresses"])
        yield (name if row["name"] else row["id"][:12]), f"{row['network']} {addresses}"


def _hosts(run_dir: Path) -> Rows:
    for row in _ask(run_dir, "hosts"):
        yield row["name"], "this host" if row["me"] else "alive" if row["alive"] else "dead"


def _namespaces(run_dir: Path) -> Rows:  # noqa: ARG001 - as all kinds
    for path in sorted(_NAMESPACES.iterdir()):
        yield path.name, "network namespace"


_KINDS: Mapping[str, Any] = {
    "networks": _networks,
    "endpoints": _endpoints,
    "hosts": _hosts,
    "namespaces": _namespaces,
}
