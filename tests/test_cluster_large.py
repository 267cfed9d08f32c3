"""Many endpoints, many changes at once, and a store of several servers that lose their leader."""

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clustered import address_of, attach, create, detach, has, hosts_on, reached, reaches
from etcd_server import Member, needs_etcd, running
from living import Living, until

from netplug.drivers.tunnel import Fdb, Neighbour

pytestmark = [needs_etcd, pytest.mark.own_etcd, pytest.mark.timeout(120)]

COUNT = 1000
OPS_PER_TXN = 100
ROOT = "/netplug/v1/default/"


@pytest.fixture
def etcds(tmp_path: Path) -> Iterator[list[Member]]:
    with running(tmp_path, members=3) as members:
        yield members


def told(number: int) -> dict[str, object]:
    address = f"10.90.{4 + number // 250}.{number % 250 + 1}"
    return {"mac": f"02:6e:00:00:{number >> 8:02x}:{number & 255:02x}", "addresses": [address], "names": [f"c{number}"]}


def claimed(number: int) -> dict[str, object]:
    owner = {"kind": "endpoint", "id": f"{number:064x}", "name": ""}
    return {"pool": "global/10.90.0.0/16", "address": told(number)["addresses"][0], "owner": owner, "host": "many"}  # type: ignore[index]


def write(etcd: Member, prefix: str, numbers: range, *, there: bool) -> None:
    """Tell of endpoints, or that they are gone, in transactions as large as may be; their addresses are claimed."""
    leases = "ipam/leases/global%2F10.90.0.0%2F16/"
    for start in range(0, len(numbers), OPS_PER_TXN // 2):
        ops: list[dict[str, Any]] = []
        for number in numbers[start : start + OPS_PER_TXN // 2]:
            lease = claimed(number)
            for name, value in ((f"{leases}{lease['address']}", lease), (f"{prefix}{number:064x}", told(number))):
                key = b64encode(f"{ROOT}{name}".encode()).decode()
                data = b64encode(json.dumps({"txn": "", "value": value}).encode()).decode()
                ops.append(
                    {"requestPut": {"key": key, "value": data}} if there else {"requestDeleteRange": {"key": key}}
                )
        etcd.post("kv/txn", success=ops)


def settles(host: Living, wanted: set[str]) -> None:
    """Wait until a kernel has the neighbours that it ought to, and nothing changes; then look at where they are."""
    addresses = {where.partition(" ")[0] for where in wanted}

    def neighbours() -> set[str]:
        steps = list(host.kernel._world.state.values())
        return {str(step.address) for step in steps if isinstance(step, Neighbour)}

    until(lambda: neighbours() == addresses and host.client.get("diff")["differences"] == [], "all are there")
    until(lambda: entries(host) == len(wanted), "all entries")
    assert reached(host) == wanted


def entries(host: Living) -> int:
    return sum(isinstance(step, Fdb) for step in list(host.kernel._world.state.values()))


def test_a_thousand_endpoints_and_a_burst_of_changes(tmp_path: Path, etcd: Member) -> None:
    """Hard case 20: none is lost, at a start and in a burst; the kernel has just those of the end."""
    with hosts_on(tmp_path, f"etcd://{etcd.host}") as hosts:
        one = hosts.start(1)
        network = create(one, subnets=[{"subnet": "10.90.0.0/16"}])["id"]
        etcd.write("cluster/hosts/many", {"name": "many", "vtep": "192.0.2.99", "epoch": 1})
        prefix = f"cluster/endpoints/{network}/many/"
        write(etcd, prefix, range(COUNT), there=True)
        wanted = {f"{told(number)['addresses'][0]} at 192.0.2.99" for number in range(COUNT)}  # type: ignore[index]
        late = hosts.start(2)
        for host in (one, late):
            settles(host, wanted)
        for turn in range(2):
            write(etcd, prefix, range(0, COUNT, 2), there=turn % 2 == 1)
            write(etcd, prefix, range(1, COUNT, 2), there=turn % 2 == 0)
        wanted = {f"{told(number)['addresses'][0]} at 192.0.2.99" for number in range(0, COUNT, 2)}  # type: ignore[index]
        for host in (one, late):
            settles(host, wanted)
            names = {it["names"][0] for it in host.client.get("dns")["names"]}
            assert names == {f"c{number}" for number in range(0, COUNT, 2)}


def test_a_change_of_the_leader_is_nothing(tmp_path: Path, etcds: list[Member]) -> None:
    """Hard case 17: the server that dies is the one that all others wait for."""
    with hosts_on(tmp_path, f"etcd://{','.join(member.host for member in etcds)}") as hosts:
        one, two = hosts.start(1), hosts.start(2)
        create(one)
        has(two)
        first = attach(one)
        reaches(two, f"{address_of(first)} at 192.0.2.1")
        leader = next(member for member in etcds if leads(member))
        leader.stop()
        # The first call may have to wait for an election; nothing is refused.
        second = attach(one, "lab2")
        until(lambda: f"{address_of(second)} at 192.0.2.1" in reached(two), "it is told of")
        there = attach(two)
        leader.start()
        reaches(one, f"{address_of(there)} at 192.0.2.2")
        detach(one)
        reaches(two, f"{address_of(second)} at 192.0.2.1")
        for host in (one, two):
            assert host.client.get("diff")["differences"] == []


def leads(member: Member) -> bool:
    status = member.post("maintenance/status")
    return bool(status["leader"] == status["header"]["member_id"])
