"""Names with paths and with words of shells, nft and iptables on a real host: from users, and out of a damaged store.

What is done with them is seen where it would be: in files, in links, in rules.
"""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import CommandError, Host, Namespace, Netplug, assert_same, namespace, snapshot
from harness.changes import Changes

from netplug.cli import CliError

NewHost = Callable[..., Host]
MARK = "pwned"
NAMES = (
    *("../pwned", "../../../../pwned", "/tmp/pwned", "a/../b", ".."),
    *("$(>pwned)", "`>pwned`", ";>pwned;", "|sh", "&", "a b", "a\nb", "\x1b[2Jpwned"),
    *('";flush ruleset#', "}\nflush ruleset\n{", "br*", "br+", "-j", "--help", "' -j ACCEPT", "!br", "all", "%d"),
)
SHOWN = ("ip -o link", "nft list ruleset", "iptables-save", "ip6tables-save", "ip netns")


def shown(host: Host) -> str:
    return "\n".join(host.run(command.split(), check=False).stdout for command in SHOWN)


def requests(name: str, box: Namespace) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return what users ask for with a name where a link, a network, a namespace or a container has one."""
    attach = {"network": "blue", "netns": box.name}
    return {
        "bridge": ("networks", {"name": "grey", "options": {"bridge": name}}),
        "parent": ("networks", {"name": "grey", "options": {"mode": "macvlan", "parent": name}}),
        "prefix": ("networks", {"name": "grey", "options": {"ifname": name}}),
        "upstream": ("networks", {"name": "grey", "options": {"dns_upstream": f"fe80::1%{name}"}}),
        "network": ("networks", {"name": name}),
        "interface": ("attach", {**attach, "ifname": name}),
        "namespace": ("attach", {**attach, "netns": name}),
        "container": ("attach", {**attach, "name": name}),
    }


def refused_again(netplug: Netplug, path: str, body: dict[str, Any]) -> None:
    with pytest.raises(CliError):
        netplug.client.post(path, body=body)


@pytest.mark.timeout(240)
def test_no_name_of_a_user_is_more_than_a_name(new_host: NewHost) -> None:
    host = new_host()
    host.run(["ip", "link", "add", "brown", "type", "bridge"])
    netplug = Netplug(host)
    netplug.cli("network", "create", "blue", "--subnet", "10.96.0.0/24")
    with namespace(host) as box, namespace(host) as warm:
        warm.attach(netplug, "blue")
        warm.detach(netplug, "blue")
        before, refused = snapshot(host), 0
        changes = Changes(host.netns)
        for name in NAMES:
            for what, (path, body) in requests(name, box).items():
                try:
                    made = netplug.client.post(path, body=body)
                except CliError as exc:
                    refused += str(exc).isprintable()
                    if changes.any():  # perhaps by what goes on in the background
                        again = partial(refused_again, netplug, path, body)
                        assert changes.untouched(again), (what, name)
                    continue
                # The names of these come into no kernel, and all0 is a link like any other.
                assert what in {"network", "container"} or (what, name) == ("prefix", "all"), made
                if path == "attach":
                    netplug.client.post("detach", body={"network": "blue", "netns": box.name})
                else:
                    netplug.client.delete(f"networks/{made['id']}")
                changes.settle()
                changes.any()
        changes.close()
        assert refused >= 6 * len(NAMES)
        assert_same(before, lambda: snapshot(host))
    assert MARK not in shown(host)
    assert not list(host.dir.rglob(f"*{MARK}*"))
    assert not [it for it in (Path.cwd(), Path("/"), Path("/tmp")) if (it / MARK).exists()]


def write(database: Path, key: str, value: Any) -> None:
    with closing(sqlite3.connect(database)) as db, db:
        (revision,) = db.execute("SELECT revision FROM state").fetchone()
        text = json.dumps(value)
        db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?, NULL)", (key.encode(), text, revision))


def records(database: Path, kind: str) -> list[tuple[str, Any]]:
    with closing(sqlite3.connect(database)) as db:
        found = db.execute("SELECT key, value FROM record ORDER BY key").fetchall()
    return [(key.decode(), json.loads(text)) for key, text in found if key.decode().startswith(kind)]


def changed(value: Any, change: Callable[[Any], object]) -> Any:
    copy = deepcopy(value)
    change(copy)
    return copy


@pytest.mark.timeout(240)
def test_no_name_in_the_store_is_more_than_a_name(new_host: NewHost) -> None:
    """A file that a setting's path leads to keeps its text; the daemon starts, and other networks work."""
    host = new_host()
    netplug = Netplug(host)
    for number, name in enumerate(("blue", "red", "grey", "green")):
        netplug.cli("network", "create", name, "--subnet", f"10.96.{number}.0/24")
    with namespace(host) as one, namespace(host) as two, namespace(host) as late:
        one.attach(netplug, "red")
        two.attach(netplug, "grey")
        netplug.stop()
        victim = host.dir / "victim"
        victim.write_text("1")
        database = netplug.state_dir / "netplug.db"
        evil = {"step": "Sysctl", "name": f"../..{victim}", "value": "1", "restore": MARK}
        (base,) = records(database, "meta/base")
        networks = {value["network"]["name"]: (key, value) for key, value in records(database, "networks/")}
        ends = {value["endpoint"]["network"]: (key, value) for key, value in records(database, "endpoints/")}
        # What was found first: reverted by the start, by a deletion; a start that failed; a wildcard of iptables.
        write(database, "journal/dead", {"what": "network x", "plan": [evil], "drop": []})
        write(database, base[0], changed(base[1], lambda it: it.update(plan=[{"step": []}, evil, *it["plan"]])))
        key, value = networks["green"]
        write(database, key, changed(value, lambda it: it["plan"].insert(0, evil)))
        key, value = networks["grey"]
        write(database, key, changed(value, lambda it: it["network"]["options"].update(bridge="br+")))
        key, value = ends[networks["red"][1]["network"]["id"]]
        write(database, key, changed(value, lambda it: it.update(ifname="$(>pwned)")))
        netplug.start()
        late.attach(netplug, "blue")
        assert late.pings("10.96.0.1")
        told = netplug.drift()
        for words in ("is not a setting of the network", "is not the name of a link", "has a step"):
            assert words in told, told
        with pytest.raises(CommandError, match="cannot be used"):
            netplug.cli("repair")
        for name in ("green", "grey", "red"):
            with pytest.raises(CommandError, match=r"cannot be used|endpoint"):
                netplug.cli("network", "rm", name)
        assert victim.read_text() == "1"
        state = shown(host)
        assert [sign for sign in (MARK, "br+", "victim") if sign in state] == []
        late.detach(netplug, "blue")
        # With the records as they were, all is well again.
        netplug.stop()
        for key, value in (base, *networks.values(), *ends.values()):
            write(database, key, value)
        with closing(sqlite3.connect(database)) as db, db:
            db.execute("DELETE FROM record WHERE key = ?", (b"journal/dead",))
        netplug.start()
        netplug.cli("repair")
        assert netplug.drift() == ""
        assert one.pings("10.96.1.1")
        one.detach(netplug, "red")
        two.detach(netplug, "grey")
