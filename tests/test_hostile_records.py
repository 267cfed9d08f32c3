"""Records that a damaged disk, or a member host that went mad, may hold: a bad one stops nothing else, and is told."""

import json
import os
import re
import sqlite3
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import closing, suppress
from copy import deepcopy
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, cast

import pytest
from clustered import Hosts, address_of, apart, attach, create, detach, has, reached, reaches
from engine_host import END, NET, OTHER, Host, tcp
from etcd_server import Member, needs_etcd
from hostile import INTERNAL, changed, places
from living import Living, until

from netplug.drivers.codec import encode
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Bridge, Loopback, Macvlan, Passage, Step, Sysctl
from netplug.drivers.tunnel import Vxlan
from netplug.drivers.zones import Zone
from netplug.engine.journal import Intent
from netplug.errors import NetplugError
from netplug.kernel.fake.kernel import FakeKernel
from netplug.store.api import Put
from netplug.store.sqlite import SqliteStore

FUZZ = bool(os.environ.get("NETPLUG_FUZZ"))
"""With it, each variant is written."""
EVIL = "f" * 32
"""Of two hosts that claim one VTEP since the same time it is the one with the lower id that has it: no host of ours."""
GOOD = "d9" * 32
VALUES: tuple[Any, ...] = (
    *("", "../../etc", "a\0b", "\x1b[2J", "$(reboot)", "x" * 16, "\ud800", "0.0.0.0/0", "10.1.0.1/99", "224.0.0.1"),
    *("fe80::1%x\n$(reboot)", 7, -1, True, None, 10**30, 1.5, [], {}, [[]], {"a": {}}, [None], "9" * 30, "y" * 4000),
)
RAW = (b"", b"\xff\xfe", b"{", b"[" * 100_000, b"null", b'{"txn":"","value":7}', b'{"value":[]}', b'"x"', b'{"txn":1}')
SIGNS = ("reboot", "\x1b", "\0", "../..", "yyyy")
"""What must not come into the kernel."""


def variants(valid: Any) -> list[Any]:
    """Return a record with each of its values replaced, taken away, and beside another."""
    found = list(VALUES)
    for path in list(places(valid))[1:]:
        found += [changed(valid, path, value, how) for value in VALUES for how in ("set", "add")]
        found.append(changed(valid, path, None, "drop"))
    return found[:: 1 if FUZZ else 5]


def put_raw(etcd: Member, key: str, raw: bytes) -> None:
    name = b64encode(f"/netplug/v1/default/{key}".encode()).decode()
    etcd.post("kv/put", key=name, value=b64encode(raw).decode())


def where(kind: str, like: str, number: int, network: str, other: str) -> str:
    """Return the key of a variant of a kind of record; empty for kinds of which there is one record only."""
    ident = f"{EVIL[:-4]}{number:04}"
    match kind:
        case "cluster/endpoints":
            return f"{kind}/{network}/{other}/{ident}"
        case "cluster/hosts" | "cluster/networks" | "cluster/alive" | "cluster/recovered" | "cluster/stopped":
            return f"{kind}/{ident}"
        case "cluster/members" | "cluster/twins":
            return f"{kind}/{network}/{ident}"
        case "ipam/leases":
            return f"{like.rpartition('/')[0]}/10.224.0.{number % 120 + 3}"
        case "ipam/pools":
            return f"ipam/pools/global%2F10.{number % 250}.{number // 250}.0%2F24"
    return f"{like}x{number}" if kind.startswith(("confirmed", "followed")) else ""


def poison(etcd: Member, network: str, other: str) -> list[str]:
    """Write everything that may be wrong in each kind of record, as a member; return the keys."""
    by_kind: dict[str, Any] = {}
    for key, value in etcd.records("").items():
        by_kind.setdefault("/".join(key.split("/")[:2]), (key, value))
    bad = {
        key: variant
        for kind, (like, value) in sorted(by_kind.items())
        for number, variant in enumerate([*variants(value), *RAW])
        if (key := where(kind, like, number, network, other))
    }
    for key in ("cluster/", "cluster/x", "cluster/hosts/", "cluster/endpoints/a", "cluster/endpoints/../../x/y", "x"):
        bad |= {key + "\x1b[2J": {}, key + "z": b"[" * 100_000}
    for key, value in bad.items():
        if isinstance(value, bytes):
            put_raw(etcd, key, value)
        else:
            etcd.write(key, value)
    return list(bad)


@needs_etcd
@pytest.mark.own_etcd
@pytest.mark.timeout(180)
def test_poisoned_records_of_a_member_stop_nothing(hosts: Hosts, etcd: Member) -> None:
    one, other = hosts.start(1), hosts.start(2)
    create(one, subnets=apart())
    has(other)
    here, there = attach(one, "a1"), attach(other, "b1")
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    reaches(other, f"{address_of(here)} at 192.0.2.1")
    (network,) = {key.split("/")[2] for key in etcd.records("cluster/networks/")}
    by_name = {value["name"]: key.rpartition("/")[2] for key, value in etcd.records("cluster/hosts/").items()}
    keys = poison(etcd, network, by_name["host-2"])
    assert len(keys) > 200
    told(one)
    works(one, "a2")
    works(other, "b2")
    until(lambda: f"{address_of(there)} at 192.0.2.2" in reached(one), "still reached")
    one.stop()
    one = hosts.start(1)
    told(one)
    works(one, "a3")
    for key in keys:
        etcd.delete(key)
    for host in (one, other):
        until(lambda host=host: host.client.get("diff")["differences"] == [], "all is well")  # type: ignore[misc]
    reaches(one, f"{address_of(there)} at 192.0.2.2")


def told(host: Living) -> None:
    until(lambda: len(host.client.get("diff")["differences"]) > 40, "it tells of them")


def works(host: Living, netns: str) -> None:
    attach(host, netns)
    detach(host, netns)
    for listing in ("networks", "endpoints", "hosts"):
        host.client.get(listing)
    text = json.dumps(host.client.get("diff"), ensure_ascii=False)
    assert not INTERNAL.search(text), INTERNAL.search(text)
    state = host.kernel.dump()
    assert not [sign for sign in SIGNS if sign in state]


# This host's own

CRASHED = Intent(
    "network grey",
    Plan(
        (
            Bridge("np-grey", "02:00:00:00:00:01", 1500),
            Sysctl("net/ipv4/conf/np-grey/rp_filter", "1", "0"),
            Loopback("/run/netns/grey"),
            Passage(4, "nft", "np-grey", IPv4Network("10.7.0.0/24")),
            Macvlan("npm1", "eth0", "bridge", "02:00:00:00:00:02", 1500),
            Vxlan("npv1", "02:00:00:00:00:03", 1450, "np-grey", 7, IPv4Address("192.0.2.1"), 4789),
            Zone("np-+"),
        )
    ),
)
"""What a killed process left, with steps that no network here has."""


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    """Two networks whose records are damaged, and a third one."""
    it = await Host.boot()
    await it.docker_network()
    await it.docker_endpoint(ports=(tcp(8080),))
    await it.join()
    await it.publish()
    it.kernel.inhabitants.add("/run/docker/netns/1")
    await it.cli_network("10.2.0.0/24", ident=OTHER, name="red", sticky="true")
    await it.attach("ns1", network=OTHER, name="web")
    await it.cli_network("10.9.0.0/24", ident=GOOD, name="good")
    await it.store.txn((), [Put(f"journal/{EVIL}", cast("Any", encode(CRASHED)))])
    yield it
    await it.close()


def watched(kernel: FakeKernel) -> list[Step]:
    """Return a list that is given each step that comes to a kernel from now on."""
    seen: list[Step] = []

    def noting(do: Callable[..., Any]) -> Callable[..., Any]:
        async def noted(steps: Sequence[Step], *more: Any) -> Any:
            seen.extend(steps)
            return await do(steps, *more)

        return noted

    for name in ("ensure", "remove"):
        setattr(kernel, name, noting(getattr(kernel, name)))
    return seen


def evil(steps: Iterable[Step]) -> list[str]:
    """Return the steps with what must not come into the kernel.

    A namespace may have any name of a file, which is opened and nothing else; the other two are compared only.
    """
    plain = {step.key: cast("dict[str, Any]", encode(step)) for step in steps}
    for fields in plain.values():
        for name in ("network", "netns_id"):
            fields.pop(name, None)
        for name in ("netns", "moved"):
            if fields.get(name):
                fields[name] = re.sub("reboot|yyyy|[.]{2}", "", fields[name])
    texts = (json.dumps(it, ensure_ascii=False) for it in plain.values())
    return [text for text in texts if any(json.dumps(sign, ensure_ascii=False)[1:-1] in text for sign in SIGNS)]


async def lives(host: Host, key: str, value: Any) -> str:
    """Start a host like this one whose store has another record; return what `netplug diff` says of it.

    It is mended, and then all that can be is deleted.
    """
    kernel = host.kernel.__class__()
    kernel.__dict__ |= {name: deepcopy(it) for name, it in vars(host.kernel).items() if name != "changed"}
    kernel.foreign = kernel._world.foreign
    copy = Host(kernel, await SqliteStore.open(":memory:"))
    try:
        records, _ = await host.store.range("")
        await copy.store.txn((), [Put(it.key, value if it.key == key else it.value) for it in records])
        seen = watched(kernel)
        await copy.reboot()
        await copy.attach("ns7", network=GOOD, name="db")
        await copy.engine.endpoints.detach(GOOD, "ns7", "eth0")
        told = await copy.reconciler.diff()
        await copy.reconciler.repair()
        for record in copy.endpoints():
            with suppress(NetplugError):
                await copy.engine.endpoints.delete(record.endpoint.network, record.endpoint.id)
        for network in copy.networks():
            with suppress(NetplugError):
                await copy.engine.networks.delete(network.network.id, by=network.front_end)
        assert not evil(seen), (key, value)
        assert not [sign for sign in SIGNS if sign in "\n".join(copy.dump())], (key, value)
        return "\n".join(f"{it.object} {it.what}" for it in told)
    finally:
        await copy.close()


@pytest.mark.usefixtures("quiet")
async def test_damaged_records_stop_no_other_network(host: Host) -> None:
    records, _ = await host.store.range("")
    number = done = 0
    for record in records:
        if GOOD in record.key or "10.9.0" in record.key:
            continue
        for path in list(places(record.value))[1:]:
            for value in VALUES if FUZZ else (VALUES[number % len(VALUES)],):
                number += 1
                bad = changed(record.value, path, value, ("set", "set", "add", "drop")[number % 4])
                if FUZZ or not number % (7 if "plan" in path[:1] else 2):
                    await lives(host, record.key, bad)
                    done += 1
    assert done > 100


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("key", "path", "value", "words"),
    [
        (f"endpoints/{OTHER}", ("ifname",), "../../etc", "is not the name of a link"),
        (f"networks/{OTHER}", ("network", "options", "bridge"), "..", "is not the name of a link"),
        (f"networks/{OTHER}", ("network", "options", "parent"), "$(reboot)", "is not the name of a link"),
        (f"networks/{OTHER}", ("plan", 0, "name"), "br+", "is not the name of a link"),
        (f"networks/{OTHER}", ("plan", 0, "step"), ["x"], "has a step"),
        (f"endpoints/{OTHER}", ("sandbox",), "a\nb", "is not the path or name of a namespace"),
        ("meta/base", ("plan", 1, "name"), "net/../../etc/passwd", "is not a setting of the network"),
        ("meta/base", ("plan", 0, "text"), "}\nflush ruleset\n", "is not the text of a table"),
        (f"journal/{EVIL}", ("plan", 1, "restore"), "1\n2", "is not the value of a setting"),
        (f"networks/{OTHER}", ("network", "name"), "\ud800", "is not text"),
        (f"networks/{OTHER}", ("network", "id"), "c3" * 32, "it is the record of"),
        (f"endpoints/{NET}/{END}", ("endpoint", "network"), OTHER, "it is the record of"),
        (f"endpoints/{OTHER}", ("endpoint", "addresses"), [7], "is not an address"),
        (f"endpoints/{OTHER}", ("endpoint", "addresses"), ["fd00::1%$(reboot)/64"], "is not an address"),
    ],
)
async def test_damage_is_told(host: Host, key: str, path: tuple[str, ...], value: Any, words: str) -> None:
    (record,) = [it for it in (await host.store.range(""))[0] if it.key.startswith(key)]
    assert words in await lives(host, record.key, changed(record.value, path, value, "set"))


@pytest.mark.parametrize("raw", [b"{", b"[" * 100_000, b"null", b"\xff", b"", b"7", b'"\\ud800"'])
async def test_text_that_is_no_record_hides_no_other(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "state.db"
    store = await SqliteStore.open(path)
    await store.txn((), [Put("networks/a", {"x": 1}), Put("networks/b", {"x": 2})])
    await store.close()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE record SET value = CAST(? AS TEXT) WHERE key = ?", (raw, b"networks/a"))
    store = await SqliteStore.open(path)
    (bad, good), _ = await store.range("networks/")
    assert (bad.key, good.value) == ("networks/a", {"x": 2})
    assert isinstance(bad.value, dict)
    assert "x" not in bad.value
    await store.close()
