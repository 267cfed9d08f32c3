"""Former releases, as the history of this clone has them: to upgrade from, and to return to.

`previous_release` is the one before this version; its last commit is the last one that does not say this version yet.
So a version is raised by the first commit of the work on it. No tag is needed. `former_release` is the last one that
filtered by iptables.

They run with our interpreter and the entry points of our installation, which are the same in all. What they import and
we do not any more stays in the group `dev` of the dependencies.
"""

import re
import subprocess
from pathlib import Path

import pytest

from netplug import __version__

from .host import Host
from .netplugd import Netplug

_CLONE = Path(__file__).parents[2]
_VERSION = "netplug/__init__.py"
_NEWER = "netplug/engine/planning.py"
"""The former release is the last one without this file: its plans were frozen with their objects, and it filtered by
iptables."""
_SAVES = ("iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save")
_CHAINS = {f"NETPLUG-{name}" for name in ("FORWARD", "INPUT")}
"""Of the gate, in table filter."""
_TABLES = {"inet netplug", "bridge netplug", "inet netplug-host", "inet netplug-vxlan", "ip netplug-dns"}
"""Of this release."""


def previous_release(folder: Path) -> Path:
    """Unpack the source of the release before this version, as `former_release`."""
    tree = _unpacked(folder, "previous", f'-S__version__ = "{__version__}"', "--", _VERSION)
    assert __version__ not in (tree / _VERSION).read_text()
    return tree


def former_release(folder: Path) -> Path:
    """Unpack the source of the former release and return its folder; skip the test where the clone has no history."""
    tree = _unpacked(folder, "former", "--diff-filter=A", "--", _NEWER)
    assert not (tree / _NEWER).exists()
    return tree


def _unpacked(folder: Path, name: str, *newer: str) -> Path:
    """Unpack the source before the first commit that `git log` finds with these arguments."""
    first = _git("log", "--format=%H", *newer).split()
    commit = _git("rev-parse", "--verify", "--quiet", f"{first[-1]}^") if first else ""
    if not commit:
        pytest.skip(f"the clone has no history, in which the {name} release is")
    tree = folder / name
    tree.mkdir()
    archive = subprocess.run(["git", "-C", str(_CLONE), "archive", commit], check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(tree)], check=True, input=archive.stdout)
    return tree


def runs(tree: Path) -> dict[str, str]:
    """Return the environment in which our commands are those of a source tree."""
    return {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def turn(netplug: Netplug, tree: Path | None) -> list[str]:
    """Kill a daemon, and start that of another source tree, None: ours; return the lines of its log."""
    said = len(netplug.log.read_text())
    netplug.kill()
    netplug.env = runs(tree) if tree else {}
    netplug.start()
    return netplug.log.read_text()[said:].splitlines()


def remains(host: Host) -> list[str]:
    """Return what a host still has of the former release: chains, sets, and tables of nf_tables."""
    found = [f"set {name}" for name in host.output("ipset", "list", "-n").split() if name.startswith("netplug-")]
    tables = [line.removeprefix("table ") for line in host.output("nft", "list", "tables").splitlines()]
    found += [f"table {name}" for name in tables if "netplug" in name and not _is_ours(host, name)]
    for save in _SAVES:
        table = ""
        for line in host.output(save).splitlines():
            table = line[1:] if line.startswith("*") else table
            names = set(re.findall(r"NETPLUG-\w+|netplug-\w+", line))
            if names and not (table == "filter" and names <= _CHAINS):
                found.append(f"{save} {table}: {line}")
    return found


def _is_ours(host: Host, table: str) -> bool:
    """Tables of overlays bear the same names; the rules of the former ones were in base chains."""
    if table.startswith("netdev netplug-"):
        return "chain tunnel {" not in host.output("nft", "list", "table", *table.split())
    return table in _TABLES


def _git(*args: str) -> str:
    """Return what git says, nothing where it is missing or refuses."""
    try:
        done = subprocess.run(["git", "-C", str(_CLONE), *args], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
