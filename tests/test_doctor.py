"""The doctor: each check finds what it is for, says why, and what mends it; and nothing on a healthy host."""

import os
import re
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from ipaddress import IPv4Network, ip_network
from pathlib import Path

import pytest
import pytest_asyncio
from doctor_host import name_server, report, wrong
from engine_host import NET, OTHER, Host

from netplug.drivers.steps import Bridge
from netplug.engine.conditions import Difference
from netplug.insight.doctor.checks import HOST, RECORDS
from netplug.insight.doctor.doctor import examine
from netplug.insight.doctor.findings import Check, Finding, Verdict, failure, worst
from netplug.ipam.lease import Owner, OwnerKind
from netplug.ipam.pool import Base, Pool, Space
from netplug.ipam.room import Room, room
from netplug.kernel.host.api import Descriptors
from netplug.store.api import Put
from netplug.tasks.apart import apart

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(autouse=True)
def name_server_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with name_server() as address:
        monkeypatch.setenv("NETPLUG_DNS_UPSTREAM", address)
        yield


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    await host.cli_network("10.1.0.0/24")
    await host.attach("ns1", name="web")
    yield host
    await host.close()


async def said(host: Host, folder: Path, check: str) -> list[tuple[str, str, str]]:
    """Return what one check finds that should be mended."""
    return [(it.verdict, it.why, it.mend) for it in wrong(await report(host, folder)) if it.check == check]


# The runner


async def test_healthy_host_has_nothing_wrong(host: Host, tmp_path: Path) -> None:
    found = await report(host, tmp_path)
    assert wrong(found) == []
    assert found.verdict in {"ok", "note"}
    assert {it.check for it in found.findings} == {it.ident for it in (*HOST, *RECORDS)}


def test_ids_of_checks_are_unique() -> None:
    idents = [it.ident for it in (*HOST, *RECORDS)]
    assert len(set(idents)) == len(idents)


def test_document_lists_the_checks(request: pytest.FixtureRequest) -> None:
    document = Path(__file__).parent.parent / "docs/doctor.md"
    rows = ["| check | what is well |", "|---|---|", *(f"| `{it.ident}` | {it.well} |" for it in (*HOST, *RECORDS))]
    pattern = re.compile(r"(<!-- checks:.*?-->\n)(.*?)(<!-- /checks -->)", re.DOTALL)
    text = document.read_text()
    wanted, count = pattern.subn(lambda found: f"{found[1]}{chr(10).join(rows)}\n{found[3]}", text)
    assert count == 1
    if request.config.getoption("--update"):
        document.write_text(wanted)
    assert text == wanted or request.config.getoption("--update")


async def test_check_that_fails_or_hangs_keeps_no_other_from_its_answer() -> None:
    async def fails(_: None) -> Iterable[Finding]:
        raise ValueError("of all things")

    async def hangs(_: None) -> Iterable[Finding]:
        await apart(threading.Event().wait)  # in a thread that never ends
        return []

    async def finds(_: None) -> Iterable[Finding]:
        return [failure("it is broken", "mend it")]

    async def is_well(_: None) -> Iterable[Finding]:
        return []

    looks = {"fails": fails, "hangs": hangs, "finds": finds, "well": is_well}
    checks = [Check(name, "all is well", look, 0.05) for name, look in looks.items()]
    assert await examine(checks, None) == [
        Finding(Verdict.UNCHECKED, "the check failed: of all things", "", "fails"),
        Finding(Verdict.UNCHECKED, "no answer within 0.05 s", "", "hangs"),
        Finding(Verdict.FAILURE, "it is broken", "mend it", "finds"),
        Finding(Verdict.OK, "all is well", "", "well"),
    ]


def test_worst_verdict_is_that_of_the_report() -> None:
    assert worst([Finding(Verdict.NOTE, ""), Finding(Verdict.FAILURE, ""), Finding(Verdict.UNCHECKED, "")]) == "failure"
    assert worst([]) is Verdict.OK


# The kernel


async def test_kernel_that_lacks_something(host: Host, tmp_path: Path) -> None:
    host.kernel.health.lacks = ("links of kind vxlan, which the mode overlay needs (CONFIG_VXLAN)",)
    ((verdict, why, _),) = await said(host, tmp_path, "kernel.features")
    assert (verdict, why) == (
        "failure",
        "kernel 6.1.0 lacks links of kind vxlan, which the mode overlay needs (CONFIG_VXLAN)",
    )


async def test_forwarding_that_is_off(host: Host, tmp_path: Path) -> None:
    host.kernel.health.sysctls["net/ipv4/ip_forward"] = "0"
    assert await said(host, tmp_path, "kernel.forwarding") == [
        (
            "failure",
            "sysctl net.ipv4.ip_forward is 0: network blue cannot reach the outside by IPv4",
            "sysctl -w net.ipv4.ip_forward=1",
        )
    ]


async def test_forwarding_that_no_network_needs_may_be_off(tmp_path: Path) -> None:
    host = await Host.boot()
    host.kernel.health.sysctls["net/ipv4/ip_forward"] = "0"
    assert await said(host, tmp_path, "kernel.forwarding") == []
    await host.close()


@pytest.mark.parametrize(("count", "verdicts"), [(100, []), (850, ["warning"]), (990, ["failure"])])
async def test_table_of_connections_that_fills(host: Host, tmp_path: Path, count: int, verdicts: list[str]) -> None:
    host.kernel.health.sysctls |= {
        "net/netfilter/nf_conntrack_count": str(count),
        "net/netfilter/nf_conntrack_max": "1000",
    }
    found = await said(host, tmp_path, "kernel.connections")
    assert [it[0] for it in found] == verdicts
    assert all("sysctl -w net.netfilter.nf_conntrack_max=2000" in it[2] for it in found)


async def test_frames_that_meet_the_ip_firewall_are_a_note(host: Host, tmp_path: Path) -> None:
    host.kernel.health.sysctls["net/bridge/bridge-nf-call-iptables"] = "1"
    found = [it for it in (await report(host, tmp_path)).findings if it.check == "kernel.bridge-netfilter"]
    assert [(it.verdict, "bridge-nf-call-iptables is 1" in it.why) for it in found] == [("note", True)]


async def test_ipv6_that_is_off(tmp_path: Path) -> None:
    host = await Host.boot()
    host.kernel.health.sysctls["net/ipv6/conf/all/disable_ipv6"] = "1"
    assert await said(host, tmp_path, "kernel.ipv6") == []
    await host.cli_network("10.1.0.0/24", "fd00:1::/64")
    ((verdict, why, mend),) = await said(host, tmp_path, "kernel.ipv6")
    assert (verdict, mend) == ("failure", "sysctl -w net.ipv6.conf.all.disable_ipv6=0")
    assert why == "sysctl net.ipv6.conf.all.disable_ipv6 is 1, and network blue has subnets of IPv6"
    await host.close()


# What runs out


@pytest.mark.parametrize(
    ("descriptors", "verdicts"),
    [(Descriptors(10, 65536), []), (Descriptors(10, 1024), ["warning"]), (Descriptors(900, 1024), ["failure"])],
)
async def test_file_descriptors(host: Host, tmp_path: Path, descriptors: Descriptors, verdicts: list[str]) -> None:
    host.kernel.health.descriptors = descriptors
    found = await said(host, tmp_path, "resources.descriptors")
    assert [it[0] for it in found] == verdicts
    assert all("LimitNOFILE" in it[2] for it in found)


async def test_disk_that_is_full(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = os.statvfs(tmp_path)
    full = os.statvfs_result((*room[:3], 0, 0, *room[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    found = await said(host, tmp_path, "resources.disk")
    assert [it[0] for it in found] == ["failure", "failure"]
    assert "0 MB are free" in found[0][1]


# Records


async def test_object_that_is_missing(host: Host, tmp_path: Path) -> None:
    bridge = next(it for it in host.made(Bridge))
    host.kernel.lose(bridge.key)
    found = await said(host, tmp_path, "records.drift")
    assert ("failure", f"network blue: {bridge.key} missing", "netplug repair") in found


async def test_record_in_quarantine(host: Host, tmp_path: Path) -> None:
    record = await host.store.get(f"networks/{NET}")
    assert record
    await host.store.txn((), [Put(record.key, {**record.value, "colour": "blue"})])
    await host.reboot()
    found = await said(host, tmp_path, "records.quarantine")
    assert [it[0] for it in found] == ["failure", "failure"]
    assert "network a1a1a1a1a1a1 (blue)" in found[1][1]
    assert "'colour'" in found[1][1]
    assert await said(host, tmp_path, "records.faults") == []  # not twice


async def test_addresses_and_routes_of_others_come_with_their_mend(host: Host, tmp_path: Path) -> None:
    words = "is on link 'eth0' too: containers there are not reached"
    found = [
        Difference("network blue", "address 10.1.0.9/24", f"{words}; remove it: ip address del 10.1.0.9/24 dev eth0"),
        Difference("network blue", "name", "'x' is not served"),
    ]
    host.engine.conditions.report("somebody", found)
    assert await said(host, tmp_path, "records.faults") == [
        ("warning", f"network blue: address 10.1.0.9/24: {words}", "ip address del 10.1.0.9/24 dev eth0"),
        ("warning", "network blue: name: 'x' is not served", "netplug diff"),
    ]


async def test_lease_without_an_endpoint(host: Host, tmp_path: Path) -> None:
    pool = host.engine.allocator.pools()[0]
    ghost = Owner(OwnerKind.ENDPOINT, "f0" * 32, "ghost")
    lease = await host.engine.allocator.request_address(pool.id, owner=ghost)
    ((verdict, why, _),) = await said(host, tmp_path, "records.leases")
    assert verdict == "warning"
    assert why.startswith(f"{lease.address} of 10.1.0.0/24: leased to endpoint f0f0f0f0f0f0, which does not exist")


def test_room_of_an_address_space() -> None:
    spaces = (Space("local", (Base(IPv4Network("10.0.0.0/22"), 24),)), Space("external"))
    pools = [Pool("local", ip_network(it)) for it in ("10.0.0.0/26", "10.0.0.64/26", "10.0.2.0/23", "10.9.0.0/24")]
    assert room(spaces, []) == [Room("local", 4, 4)]
    assert room(spaces, pools) == [Room("local", 4, 1)]
    assert room(spaces, [Pool("local", ip_network("10.0.0.0/8"))]) == [Room("local", 4, 0)]


async def test_address_space_that_is_full(host: Host, tmp_path: Path) -> None:
    base = host.engine.allocator.spaces[0].bases[0]
    await host.cli_network(str(base.network), ident=OTHER, name="all")
    ((verdict, why, mend),) = await said(host, tmp_path, "records.subnets")
    assert (verdict, why.startswith("4096 of 4096 subnets of address space local are taken")) == ("failure", True)
    assert "--address-pool" in mend


async def test_pool_that_is_full(tmp_path: Path) -> None:
    host = await Host.boot()
    await host.cli_network("10.1.0.0/29")
    for number in range(4):
        await host.attach(f"ns{number}")
    assert await said(host, tmp_path, "records.pools") == []
    await host.attach("ns4")
    ((verdict, why, mend),) = await said(host, tmp_path, "records.pools")
    assert (verdict, why) == (
        "failure",
        "network blue: 6 of 6 addresses of 10.1.0.0/29 are in use: nobody else can join",
    )
    assert "network update blue --subnet-add" in mend
    await host.close()
