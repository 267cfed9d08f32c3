"""Word of what others change, and of nothing else, from the real kernel."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from netplug.drivers import firewall
from netplug.drivers.steps import Address, Bridge, Element, Gate, Hairpin, Ifb, Passage, Shape, Sysctl, Veth
from netplug.drivers.tables import NETWORKS
from netplug.drivers.tunnel import NO_MAC, Fdb, Neighbour, Vxlan
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.firewall import legacy_watch
from netplug.kernel.host import sysctl
from netplug.kernel.linux import LinuxKernel
from netplug.kernel.netlink import route_watch, watch
from netplug.kernel.sandbox import netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

BRIDGE = Bridge("np-test", "02:00:00:00:00:01", 1500)
GATEWAY = Address("np-test", ip_interface("10.9.0.1/24"))
VETH = Veth("nphtest", "npstest", "02:00:00:00:01:01", "02:00:00:00:02:01", 1500, "np-test")
TABLE = firewall.table(NETWORKS, "networks")
LED = Element(NETWORKS, "published4_any", "tcp . 8080", "10.9.0.2 . 80")
GATE = Gate(4, "nft")
LEGACY = Gate(4, "legacy")
OURS = (BRIDGE, GATEWAY, VETH, TABLE, LED, GATE)
VXLAN = Vxlan("npvtest", "fe:00:00:00:05:01", 1450, BRIDGE.name, 4097, ip_address("10.5.0.1"), 4789)
FDB = Fdb(VXLAN.name, "02:00:00:00:06:02", ip_address("10.5.0.2"))
NEIGHBOUR = Neighbour(BRIDGE.name, ip_address("10.9.0.2"), FDB.mac)
MOVED = "02:00:00:00:02:08"
STATIONS = (FDB, replace(FDB, mac=NO_MAC), NEIGHBOUR, replace(NEIGHBOUR, address=ip_address("fd00:9::2")))
DEADLINE_S = 20
QUIET_S = 0.2
"""Longer than the kernel takes to deliver what has been done before."""


@pytest.fixture
def _namespace() -> Iterator[None]:
    with netns.temporary_netns():
        yield


@pytest.fixture
async def kernel(_namespace: None) -> AsyncIterator[LinuxKernel]:
    async with await LinuxKernel.open() as linux:
        await linux.ensure(OURS)
        await expect_silence(linux)
        yield linux


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


async def wait_for_word(kernel: LinuxKernel, timeout_s: float = DEADLINE_S) -> None:
    events = (kernel.changes.ours(), kernel.changes.commits())
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    if not done:
        raise TimeoutError
    for event in events:
        event.clear()


async def expect_silence(kernel: LinuxKernel) -> None:
    with pytest.raises(TimeoutError):
        await wait_for_word(kernel, QUIET_S)


async def expect_word_and_mend(kernel: LinuxKernel, what: str) -> None:
    """Be told of a change of others, which makes this one difference, and mend it without a word."""
    await wait_for_word(kernel)
    assert [it.what for it in await kernel.drift(OURS)] == [what]
    await kernel.ensure(OURS)
    assert await kernel.drift(OURS) == []
    await expect_silence(kernel)


@pytest.mark.parametrize(
    "command",
    [
        "ip link del nphtest",
        "ip link del npstest",
        "ip link del np-test",
        "ip address del 10.9.0.1/24 dev np-test",
        "ip route del 10.9.0.0/24 dev np-test",
        "ip link set np-test down",
        "ip link set np-test mtu 1400",
        "ip link set np-test address 02:00:00:00:00:99",
        "ip link set nphtest down",
        "ip link set nphtest mtu 1400",
        "ip link set nphtest nomaster",
        "iptables-nft -F FORWARD",
        "iptables-nft -I FORWARD -j ACCEPT",
        "iptables-nft -F NETPLUG-FORWARD",
        "nft flush ruleset",
        "nft delete table inet netplug",
        "nft flush chain inet netplug forward",
        "nft insert rule inet netplug forward accept",
        "nft delete element inet netplug published4_any { tcp . 8080 }",
        "nft add element inet netplug published4_any { tcp . 8081 : 10.9.0.2 . 80 }",
    ],
)
async def test_what_others_do_to_ours_is_told(kernel: LinuxKernel, command: str) -> None:
    run(*command.split())
    await wait_for_word(kernel)


@pytest.mark.parametrize("link", [BRIDGE.name, VETH.name, VXLAN.name])
async def test_link_that_others_rename_is_told_and_gets_its_name_back(kernel: LinuxKernel, link: str) -> None:
    await kernel.ensure((VXLAN,))
    await expect_silence(kernel)
    run("ip", "link", "set", link, "down")
    run("ip", "link", "set", link, "name", "stray0")
    await wait_for_word(kernel)
    drifts = {it.step.key: it.what for it in await kernel.drift((*OURS, VXLAN))}
    assert drifts[f"link/{link}"] == "is called 'stray0'"
    await kernel.ensure((*OURS, VXLAN))
    assert await kernel.drift((*OURS, VXLAN)) == []
    run("ip", "link", "add", "stray0", "type", "bridge")  # the name is free


@pytest.mark.parametrize("address", ["10.9.0.1/24", "fd00:9::1/64"])
async def test_route_of_a_subnet_that_others_delete_comes_back_as_it_was(kernel: LinuxKernel, address: str) -> None:
    step = Address("np-test", ip_interface(address))
    steps = (BRIDGE, step)
    subnet = str(step.address.network)

    def routes() -> list[str]:
        command = ("ip", f"-{step.address.version}", "route", "show", subnet)
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        return found.stdout.replace("linkdown", "").split()

    await kernel.ensure(steps)
    before = routes()
    assert "kernel" in before
    for _ in range(2):
        await expect_silence(kernel)
        run("ip", "route", "del", subnet, "dev", "np-test")
        await wait_for_word(kernel)
        (drift,) = await kernel.drift(steps)
        assert drift.what == f"the route to {subnet} is missing"
        outcomes = await kernel.ensure(steps)
        assert outcomes == [Outcome.EQUAL, Outcome.ADJUSTED]
        assert routes() == before
        assert await kernel.drift(steps) == []
    await kernel.remove((step,))
    assert not routes()


async def test_routes_of_others_are_theirs_alone(kernel: LinuxKernel) -> None:
    for number in range(3):
        run("ip", "route", "add", f"10.8.{number}.0/24", "dev", "np-test")
        run("ip", "route", "del", f"10.8.{number}.0/24", "dev", "np-test")
    run("ip", "link", "add", "br8", "type", "bridge")
    run("ip", "link", "set", "br8", "up")
    run("ip", "address", "add", "10.7.0.1/24", "dev", "br8")
    run("ip", "route", "del", "10.7.0.0/24", "dev", "br8")
    await expect_silence(kernel)
    assert await kernel.drift(OURS) == []


async def test_renamed_link_whose_name_another_has_is_refused(kernel: LinuxKernel) -> None:
    run("ip", "link", "set", BRIDGE.name, "down")
    run("ip", "link", "set", BRIDGE.name, "name", "stray0")
    run("ip", "link", "add", BRIDGE.name, "type", "bridge")
    with pytest.raises(StepError, match="exists and is not ours"):
        await kernel.ensure((BRIDGE,))
    run("ip", "link", "del", BRIDGE.name)
    await kernel.ensure(OURS)
    assert await kernel.drift(OURS) == []


async def test_sysctl_that_others_write_is_told_also_once_its_link_was_made_anew(kernel: LinuxKernel) -> None:
    step = Sysctl(f"net/ipv4/conf/{BRIDGE.name}/route_localnet", "1")
    await kernel.ensure((step,))
    await expect_silence(kernel)
    for _ in range(2):
        run("sysctl", "-qw", f"{step.name}=0")
        await wait_for_word(kernel)
        await kernel.ensure((step,))
        await expect_silence(kernel)
        run("ip", "link", "del", BRIDGE.name)
        await wait_for_word(kernel)
        await kernel.ensure((*OURS, step))
        await expect_silence(kernel)
    async with await LinuxKernel.open() as later:
        assert await later.drift((*OURS, step)) == []
        run("sysctl", "-qw", f"{step.name}=0")
        await wait_for_word(later)
        await later.ensure((step,))
    await wait_for_word(kernel)
    await kernel.remove((step,))
    await expect_silence(kernel)
    run("sysctl", "-qw", f"{step.name}=0")
    await expect_silence(kernel)


@pytest.mark.parametrize("setting", ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"])
async def test_forwarding_that_others_turn_off_is_told(kernel: LinuxKernel, setting: str) -> None:
    run("sysctl", "-qw", f"{setting}=1")
    await expect_silence(kernel)
    run("sysctl", "-qw", f"{setting}=0")
    await wait_for_word(kernel)


async def test_lost_link_local_address_of_a_bridge_is_told_and_made_again(kernel: LinuxKernel) -> None:
    """Without it, no IPv6 comes to containers once neighbours are forgotten."""
    run("ip", "link", "set", VETH.peer, "up")
    await kernel.ensure(OURS)
    await expect_silence(kernel)
    run("ip", "-6", "address", "flush", "dev", BRIDGE.name, "scope", "link")
    await wait_for_word(kernel)
    assert [it.what for it in await kernel.drift(OURS)] == ["has no link-local address fe80::ff:fe00:1"]
    await kernel.ensure(OURS)
    assert await kernel.drift(OURS) == []


async def test_flags_that_others_take_from_a_bridge_port_are_told(kernel: LinuxKernel) -> None:
    port = replace(VETH, name="nphport", peer="npsport", mac="02:00:00:00:01:08", isolated=True, pinned=True)
    hairpin = Hairpin(port.name)
    await kernel.ensure((port, hairpin))
    run("ip", "link", "set", port.peer, "up")  # a port without a carrier is disabled
    await comes_to_be(port.name, "forwarding")
    await expect_silence(kernel)
    floods = ("flood off", "mcast_flood off", "bcast_flood off")
    for flag in ("hairpin off", "isolated off", "learning on", "state 0", "state 1", "locked on", *floods):
        run("bridge", "link", "set", "dev", port.name, *flag.split())
        await wait_for_word(kernel)
        await kernel.ensure((port, hairpin))
        assert await kernel.drift((port, hairpin)) == []
        await expect_silence(kernel)
    run("ip", "link", "set", port.peer, "down")
    await expect_silence(kernel)
    await kernel.remove((hairpin,))
    await expect_silence(kernel)
    await kernel.remove((port,))
    await expect_silence(kernel)


async def comes_to_be(port: str, state: str, within_s: float = DEADLINE_S) -> None:
    """Wait for the state of a port: the kernel looks at a new carrier a while later."""

    def is_there() -> bool:
        command = ("bridge", "link", "show", "dev", port)
        return f"state {state} " in subprocess.run(command, check=True, capture_output=True, text=True).stdout

    async with asyncio.timeout(within_s):
        while not is_there():  # noqa: ASYNC110 - a state, not an event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("pinned", [False, True])
async def test_flags_that_others_give_to_a_bridge_port_are_told(kernel: LinuxKernel, pinned: bool) -> None:
    port = replace(VETH, name="nphport", peer="npsport", mac="02:00:00:00:01:08", pinned=pinned)
    await kernel.ensure((port,))
    run("ip", "link", "set", port.peer, "up")
    await comes_to_be(port.name, "forwarding")
    await expect_silence(kernel)
    told = {
        "isolated on": "port is isolated",
        "hairpin on": "port flag hairpin is on",
        "learning on" if pinned else "learning off": f"port {'learns' if pinned else 'does not learn'} MACs",
        "neigh_suppress on": "port flag neigh_suppress is on",
    }
    for flag, what in told.items():
        run("bridge", "link", "set", "dev", port.name, *flag.split())
        await wait_for_word(kernel)
        assert [it.what for it in await kernel.drift((port,))] == [what]
        assert await kernel.ensure((port,)) == [Outcome.ADJUSTED]
        assert await kernel.drift((port,)) == []
        await expect_silence(kernel)
    run("ip", "link", "set", port.name, "type", "bridge_slave", "proxy_arp", "on")
    await wait_for_word(kernel)
    assert [it.what for it in await kernel.drift((port,))] == ["port flag proxy_arp is on"]
    await kernel.ensure((port,))
    assert await kernel.drift((port,)) == []


async def test_ports_that_we_change_are_passed_over(kernel: LinuxKernel) -> None:
    """As by an update of a network, and by ports that are published and withdrawn."""
    port, hairpin = replace(VETH, isolated=True, pinned=True), Hairpin(VETH.name)
    for steps in ((port,), (VETH,), (port, hairpin), (VETH, hairpin)):
        await kernel.ensure(steps)
        await expect_silence(kernel)
    await kernel.remove((hairpin,))
    assert await kernel.drift((VETH,)) == []
    await expect_silence(kernel)


async def test_mac_that_others_give_to_a_bridge_port_is_told(kernel: LinuxKernel) -> None:
    run("ip", "link", "set", VETH.name, "address", "02:00:00:00:00:77")
    await expect_word_and_mend(kernel, "MAC is 02:00:00:00:00:77, not 02:00:00:00:01:01")


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("del {mac} dev {port} master", "the bridge has no static FDB entry for {mac}"),
        ("replace {mac} dev {other} master static", "the bridge has no static FDB entry for {mac}"),
        ("replace {mac} dev {port} master static", "the bridge has no static FDB entry for {mac}"),
        (
            "add 02:00:00:00:00:55 dev {port} master static sticky",
            "the bridge has a static FDB entry for 02:00:00:00:00:55",
        ),
    ],
)
async def test_static_entry_that_others_change_is_told(kernel: LinuxKernel, command: str, what: str) -> None:
    """Whether this process has made it, or an earlier one."""
    pinned = replace(VETH, name="nphport", peer="npsport", mac="02:00:00:00:01:08", peer_mac=MOVED, pinned=True)
    names = {"mac": pinned.peer_mac, "port": pinned.name, "other": VETH.name}
    await kernel.ensure((pinned,))
    await expect_silence(kernel)
    run("bridge", "fdb", *command.format(**names).split())
    await wait_for_word(kernel)
    assert [it.what for it in await kernel.drift((VETH, pinned))] == [what.format(**names)]
    await kernel.ensure((pinned,))
    assert await kernel.drift((VETH, pinned)) == []
    await expect_silence(kernel)
    async with await LinuxKernel.open() as later:
        assert await later.drift((VETH, pinned)) == []
        run("bridge", "fdb", *command.format(**names).split())
        await wait_for_word(later)
        await later.ensure((pinned,))
    await wait_for_word(kernel)
    await kernel.ensure((replace(pinned, pinned=False),))
    await expect_silence(kernel)
    run("bridge", "fdb", "replace", pinned.peer_mac, "dev", VETH.name, "master", "static")
    await expect_silence(kernel)
    await kernel.remove((pinned,))
    await expect_silence(kernel)


BLOCK = Ifb("npitest", "02:00:00:00:03:01")
LIMIT = Shape(VETH.name, BLOCK.name, (16_000_000, 4_000_000), (80_000, 80_000))


@pytest.mark.parametrize(
    "command",
    [
        f"qdisc del dev {LIMIT.link} root",
        f"qdisc del dev {LIMIT.link} ingress",
        f"filter del dev {LIMIT.link} ingress",
        f"qdisc change dev {LIMIT.link} root tbf rate 1gbit burst 128kb latency 25ms",
        f"qdisc replace dev {LIMIT.link} root pfifo",
        f"qdisc del dev {LIMIT.ifb} root",
    ],
)
async def test_limit_that_others_change_is_told(kernel: LinuxKernel, command: str) -> None:
    await kernel.ensure((BLOCK, LIMIT))
    await expect_silence(kernel)
    for _ in range(2):
        run("tc", *command.split())
        await wait_for_word(kernel)
        assert [it.step for it in await kernel.drift((BLOCK, LIMIT))] == [LIMIT]
        await kernel.ensure((LIMIT,))
        assert await kernel.drift((BLOCK, LIMIT)) == []
        await expect_silence(kernel)
    async with await LinuxKernel.open() as later:
        assert await later.drift((VETH, BLOCK, LIMIT)) == []
        run("tc", *command.split())
        await wait_for_word(later)


async def test_limits_that_we_change_and_those_of_others_are_passed_over(kernel: LinuxKernel) -> None:
    await kernel.ensure((BLOCK, LIMIT))
    await kernel.ensure((replace(LIMIT, rate=(8_000_000, 0)),))
    await kernel.ensure((LIMIT,))
    run("tc", "qdisc", "add", "dev", BRIDGE.name, "root", "pfifo")
    run("tc", "qdisc", "del", "dev", BRIDGE.name, "root")
    await kernel.remove((LIMIT, BLOCK))
    await expect_silence(kernel)
    run("tc", "qdisc", "add", "dev", VETH.name, "root", "pfifo")
    await expect_silence(kernel)


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("type bridge stp_state 1", "runs the spanning tree protocol"),
        ("type bridge no_linklocal_learn 0", "learns MACs from link-local frames"),
        ("group 7", "group is 7, not 0"),
    ],
)
async def test_bridge_that_others_set_otherwise_is_told(kernel: LinuxKernel, setting: str, what: str) -> None:
    run("ip", "link", "set", BRIDGE.name, *setting.split())
    await expect_word_and_mend(kernel, what)
    async with await LinuxKernel.open() as later:
        assert await later.drift(OURS) == []
        run("ip", "link", "set", BRIDGE.name, *setting.split())
        await wait_for_word(later)


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("ipv4.conf.{}.forwarding=0", "forwarding is 0, not 1"),
        ("ipv4.conf.{}.accept_redirects=1", "accept_redirects is 1, not 0"),
        ("ipv6.conf.{}.accept_redirects=1", "accept_redirects is 1, not 0"),
        ("ipv6.conf.{}.accept_ra=2", "accept_ra is 2, not 0"),
        ("ipv6.conf.{}.accept_dad=1", "accept_dad is 1, not 0"),
    ],
)
async def test_setting_of_a_bridge_that_others_write_is_told(kernel: LinuxKernel, setting: str, what: str) -> None:
    forwards = Sysctl("net/ipv4/ip_forward", "1")
    await kernel.ensure((forwards,))
    await expect_silence(kernel)
    command = ("sysctl", "-qw", "net." + setting.format(BRIDGE.name))
    for turn in range(4):
        run(*command)
        await expect_word_and_mend(kernel, what)
        if turn == 1:
            run("ip", "link", "del", BRIDGE.name)
            await wait_for_word(kernel)
            await kernel.ensure(OURS)
            await expect_silence(kernel)
    async with await LinuxKernel.open() as later:
        assert await later.drift(OURS) == []
        run(*command)
        await wait_for_word(later)


@pytest.mark.parametrize("by_others", [False, True])
async def test_settings_of_a_bridge_that_got_its_name_back_are_told(kernel: LinuxKernel, *, by_others: bool) -> None:
    """With another name they are other files."""
    await kernel.ensure((Sysctl("net/ipv4/ip_forward", "1"),))
    run("ip", "link", "set", BRIDGE.name, "down")
    run("ip", "link", "set", BRIDGE.name, "name", "stray0")
    if by_others:
        run("ip", "link", "set", "stray0", "name", BRIDGE.name)
    await kernel.ensure(OURS)
    with suppress(TimeoutError):
        while True:  # each part of it is told
            await wait_for_word(kernel, QUIET_S)
    run("sysctl", "-qw", f"net.ipv4.conf.{BRIDGE.name}.forwarding=0")
    await expect_word_and_mend(kernel, "forwarding is 0, not 1")


async def test_bridge_need_not_forward_on_a_host_that_does_not(kernel: LinuxKernel) -> None:
    run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    assert await kernel.drift((BRIDGE,)) == []
    run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.default.forwarding=0")
    fresh = replace(BRIDGE, name="np-fresh", mac="02:00:00:00:00:07")
    await kernel.ensure((fresh,))
    assert await kernel.drift((BRIDGE, fresh)) == []
    assert not sysctl.drift(Sysctl(f"net/ipv4/conf/{fresh.name}/forwarding", "1"))


async def test_ports_do_not_wait_once_the_spanning_tree_protocol_has_ended(kernel: LinuxKernel) -> None:
    run("ip", "link", "set", BRIDGE.name, "type", "bridge", "stp_state", "1")
    run("ip", "link", "set", VETH.peer, "up")
    await comes_to_be(VETH.name, "listening")
    await kernel.ensure((BRIDGE,))
    await comes_to_be(VETH.name, "forwarding", within_s=5)  # by itself it would take 30 s


async def test_tunnel_that_others_set_otherwise_is_told(kernel: LinuxKernel) -> None:
    await kernel.ensure((VXLAN,))
    await expect_silence(kernel)
    kind = ("type", "vxlan", "id", str(VXLAN.vni))
    settings = (("local", "10.5.0.8"), ("learning",), ("ttl", "1"), ("remote", "10.5.0.9"))
    for setting in (*settings, ("learning", "ttl", "1", "local", "10.5.0.8")):
        run("ip", "link", "set", VXLAN.name, *kind, *setting)
        await wait_for_word(kernel)
        assert len(await kernel.drift((BRIDGE, VXLAN))) == 1
        await kernel.ensure((VXLAN,))
        assert await kernel.drift((BRIDGE, VXLAN)) == []
        await expect_silence(kernel)
    for flag in ("flood on", "neigh_suppress off", "isolated on", "learning on"):
        run("bridge", "link", "set", "dev", VXLAN.name, *flag.split())
        await wait_for_word(kernel)
        assert len(await kernel.drift((BRIDGE, VXLAN))) == 1
        await kernel.ensure((VXLAN,))
        assert await kernel.drift((BRIDGE, VXLAN)) == []
        await expect_silence(kernel)


async def test_device_that_others_give_to_a_tunnel_is_told(kernel: LinuxKernel) -> None:
    await kernel.ensure((VXLAN,))
    await expect_silence(kernel)
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "set", VXLAN.name, "type", "vxlan", "id", str(VXLAN.vni), "dev", "lo")
    await wait_for_word(kernel)
    assert [it.what for it in await kernel.drift((BRIDGE, VXLAN))] == ["sends by one link, not by routes"]
    with pytest.raises(StepError, match="sends by one link, not by routes"):
        await kernel.ensure((VXLAN,))


async def test_bridge_of_the_users_own_may_be_as_they_like(kernel: LinuxKernel) -> None:
    run("ip", "link", "add", "br9", "type", "bridge")
    await kernel.ensure((Bridge("br9", "02:00:00:00:00:09", 1500, adopt=True),))
    run("ip", "link", "set", "br9", "type", "bridge", "stp_state", "1")
    run("ip", "link", "set", "br9", "group", "7")
    await expect_silence(kernel)


async def test_bridge_that_asks_for_no_macs_is_told(kernel: LinuxKernel) -> None:
    run("ip", "link", "set", BRIDGE.name, "arp", "off")
    await expect_word_and_mend(kernel, "does not ask for MACs (ARP is off)")


async def test_hairpin_of_another_process_that_others_turn_off_is_told(kernel: LinuxKernel) -> None:
    """As after a restart of the daemon: it is compared, and not made."""
    await kernel.ensure((Hairpin(VETH.name),))
    async with await LinuxKernel.open() as later:
        assert await later.drift((VETH, Hairpin(VETH.name))) == []
        run("bridge", "link", "set", "dev", VETH.name, "hairpin", "off")
        await wait_for_word(later)


def slowed(program: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Have a program wait before its work and after it; return the pipe of its words, and that for ours."""
    begun, gone_on = path / "begun", path / "gone_on"
    for fifo in (begun, gone_on):
        os.mkfifo(fifo)
    script = path / program
    wait = f"echo > {begun}\nread word < {gone_on}"
    script.write_text(f'#!/bin/sh\n{wait}\n/usr/sbin/{program} "$@"\nfailed=$?\n{wait}\nexit $failed\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    return begun, gone_on


@pytest.mark.parametrize("program", ["iptables-nft-save", "iptables-legacy-restore", "iptables-nft-restore"])
async def test_what_others_do_while_iptables_works_for_us_is_told(
    kernel: LinuxKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """However long that takes; of two commits only one is ours."""
    run("iptables-legacy", "-A", "FORWARD", "-j", "ACCEPT")
    begun, gone_on = slowed(program, tmp_path, monkeypatch)
    passage = Passage(4, "nft", "br0", ip_network("10.8.0.0/24"))
    step = LEGACY if "legacy" in program else passage
    work = asyncio.ensure_future(kernel.drift((GATE,)) if "save" in program else kernel.ensure((step,)))
    await asyncio.to_thread(begun.read_text)
    run("nft", "delete", "table", "inet", "netplug")
    await asyncio.to_thread(gone_on.write_text, "go on\n")
    await asyncio.to_thread(begun.read_text)
    await wait_for_word(kernel)
    await asyncio.to_thread(gone_on.write_text, "go on\n")
    await work


@pytest.mark.usefixtures("_namespace")
@pytest.mark.parametrize("program", ["iptables-legacy-save", "iptables-legacy-restore"])
async def test_table_of_iptables_legacy_that_we_make_is_no_change_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """However long that takes; looking makes it already."""
    monkeypatch.setattr(legacy_watch, "INTERVAL_S", 0.01)
    begun, gone_on = slowed(program, tmp_path, monkeypatch)
    async with await LinuxKernel.open() as kernel:
        work = asyncio.ensure_future(kernel.ensure((LEGACY,)))
        for _ in range(2):
            await asyncio.to_thread(begun.read_text)
            await expect_silence(kernel)
            await asyncio.to_thread(gone_on.write_text, "go on\n")
        await work
        await expect_silence(kernel)


@pytest.mark.parametrize("command", ["ip link del nphtest", "ip address del 10.9.0.1/24 dev np-test"])
async def test_what_an_earlier_life_made_is_watched_once_it_is_compared(kernel: LinuxKernel, command: str) -> None:
    async with await LinuxKernel.open() as later:
        assert await later.drift(OURS) == []
        run(*command.split())
        await wait_for_word(later)


@pytest.mark.parametrize(
    "command",
    ["iptables-legacy -F FORWARD", "iptables-legacy -I FORWARD -j ACCEPT", "iptables-legacy -F NETPLUG-FORWARD"],
)
async def test_what_others_do_to_rules_of_iptables_legacy_is_told(kernel: LinuxKernel, command: str) -> None:
    """The kernel tells of nothing; they are looked at each second."""
    await kernel.ensure((LEGACY,))
    await expect_silence(kernel)
    run(*command.split())
    await wait_for_word(kernel)
    async with await LinuxKernel.open() as later:
        assert len(await later.drift((LEGACY,))) == (command != "iptables-legacy -I FORWARD -j ACCEPT")
        run("iptables-legacy", "-A", "FORWARD", "-j", "ACCEPT")
        await wait_for_word(later)


@pytest.mark.parametrize("program", ["iptables-legacy", "ip6tables-legacy"])
@pytest.mark.parametrize("chain", ["FORWARD", "INPUT"])
async def test_policy_of_iptables_legacy_is_told_with_and_without_rules(
    kernel: LinuxKernel, program: str, chain: str
) -> None:
    """The kernel tells of it neither by the number of rules nor by their size."""
    gate = Gate(6 if program.startswith("ip6") else 4, "legacy")

    def may_drop() -> bool:
        return (gate.family, gate.flavour) in kernel.firewall.gates()

    assert not may_drop()
    for policy in ("DROP", "ACCEPT", "DROP"):
        run(program, "-P", chain, policy)
        await wait_for_word(kernel)
        assert may_drop() == (policy == "DROP")
    await kernel.ensure((gate,))
    await expect_silence(kernel)
    run(program, "-P", chain, "ACCEPT")
    await wait_for_word(kernel)
    await kernel.remove((gate,))
    await expect_silence(kernel)
    assert not may_drop()


async def test_each_change_is_told_anew(kernel: LinuxKernel) -> None:
    for command in ("iptables-nft -F FORWARD", "nft delete table inet netplug", "ip link del nphtest"):
        run(*command.split())
        await wait_for_word(kernel)


async def test_what_others_do_to_theirs_is_passed_over(kernel: LinuxKernel) -> None:
    run("ip", "link", "add", "br7", "type", "bridge")
    run("ip", "address", "add", "10.7.0.1/24", "dev", "br7")
    run("ip", "address", "del", "10.7.0.1/24", "dev", "br7")
    run("ip", "link", "del", "br7")
    await expect_silence(kernel)


async def test_what_we_do_is_passed_over(kernel: LinuxKernel) -> None:
    await kernel.remove((GATE, LED, TABLE, VETH))
    await kernel.settle()
    await expect_silence(kernel)
    await kernel.ensure((TABLE, LED, GATE, VETH))
    await expect_silence(kernel)
    await kernel.ensure((replace(TABLE, text=TABLE.text + "\nset more { type ifname; }"),))
    await expect_silence(kernel)
    await kernel.remove((VETH, BRIDGE))
    await kernel.settle()
    await expect_silence(kernel)


async def test_link_made_anew_is_watched_again(kernel: LinuxKernel) -> None:
    await kernel.remove((VETH,))
    await kernel.settle()
    await kernel.ensure((VETH,))
    await expect_silence(kernel)
    run("ip", "link", "del", VETH.name)
    await wait_for_word(kernel)


async def test_closed_kernel_hears_nothing(kernel: LinuxKernel) -> None:
    event = kernel.changes.ours()
    await kernel.close()
    run("ip", "link", "del", "nphtest")
    await expect_silence(kernel)
    assert not event.is_set()


@pytest.mark.parametrize(
    "command",
    [
        f"bridge fdb del {FDB.mac} dev npvtest self",
        f"bridge fdb del {FDB.mac} dev npvtest master",
        f"bridge fdb replace {FDB.mac} dev npvtest self dst 10.5.0.9",
        f"bridge fdb replace {FDB.mac} dev npvtest master static",
        f"bridge fdb replace {FDB.mac} dev {VETH.name} master static",
        f"bridge fdb del {NO_MAC} dev npvtest self dst {FDB.vtep}",
        "ip neigh del 10.9.0.2 dev np-test",
        "ip neigh flush dev np-test nud permanent",
        "ip neigh replace 10.9.0.2 lladdr 02:00:00:00:06:09 dev np-test nud permanent",
        "ip neigh replace 10.9.0.2 lladdr 02:00:00:00:06:02 dev np-test nud stale",
        "ip -6 neigh del fd00:9::2 dev np-test",
    ],
)
async def test_foreign_change_of_a_station_is_told(kernel: LinuxKernel, command: str) -> None:
    await kernel.ensure((VXLAN, *STATIONS))
    await expect_silence(kernel)
    run(*command.split())
    await wait_for_word(kernel)


async def test_own_changes_of_stations_and_those_of_others_are_not_told(kernel: LinuxKernel) -> None:
    moved = (replace(FDB, vtep=ip_address("10.5.0.3")), replace(NEIGHBOUR, mac="02:00:00:00:06:09"))
    await kernel.ensure((VXLAN, *STATIONS))
    await kernel.ensure(moved)
    run("bridge", "fdb", "add", "02:00:00:00:06:66", "dev", "npvtest", "self", "dst", "10.5.0.2")
    run("ip", "neigh", "replace", "10.9.0.66", "lladdr", "02:00:00:00:06:66", "dev", "np-test")
    await kernel.remove((*STATIONS[::-1], VXLAN))
    await kernel.settle()
    await expect_silence(kernel)


UPLINK = "uplink7"


@pytest.fixture
def uplink(_namespace: None) -> None:
    run("ip", "link", "add", UPLINK, "type", "veth", "peer", "name", "uplink8")
    run("ip", "link", "set", UPLINK, "up")
    run("ip", "address", "add", "192.0.2.1/24", "dev", UPLINK)


async def word_of_routes(kernel: LinuxKernel) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await kernel.changes.routes().wait()
    kernel.changes.routes().clear()


async def test_routes_are_told_of_and_not_each_of_many(
    uplink: None, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_watch, "FIRST_S", 0.2)
    assert not kernel.changes.routes().is_set()
    run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.9")
    await word_of_routes(kernel)
    await word_of_routes(kernel)  # what came while nobody listened
    await asyncio.sleep(QUIET_S)  # the subject: of what did not happen nothing is told
    assert not kernel.changes.routes().is_set()
    run("ip", "-6", "route", "add", "2001:db8:7::/64", "dev", UPLINK)
    await word_of_routes(kernel)
    told, loop = 0, asyncio.get_running_loop()
    ends = loop.time() + 10 * QUIET_S
    while loop.time() < ends:
        await asyncio.to_thread(run, "ip", "route", "replace", "198.51.100.0/24", "via", f"192.0.2.{9 + told % 2}")
        told += kernel.changes.routes().is_set()
        kernel.changes.routes().clear()
    assert 1 <= told <= 8, "twice in each time of silence, and these double: 0.2, 0.4, 0.8, 1.6 s"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (f"ip address del 192.0.2.1/24 dev {UPLINK}", True),
        (f"ip address add 192.0.2.2/24 dev {UPLINK}", True),
        (f"ip address add 2001:db8::2/64 dev {UPLINK} nodad", True),
        (f"ip link set {UPLINK} mtu 1400", True),
        (f"ip link del {UPLINK}", True),
        (f"ip address add fe80::7/64 dev {UPLINK} nodad", False),
        (f"ip link set {UPLINK} alias other", False),
        ("ip link set np-test mtu 1400", False),
        ("ip link add br7 type bridge", False),
    ],
)
async def test_what_happens_to_the_underlay_is_told(
    uplink: None, kernel: LinuxKernel, command: str, told: bool
) -> None:
    heard, others = kernel.changes.underlay(), kernel.changes.underlay()
    run(*command.split())
    if told:
        async with asyncio.timeout(DEADLINE_S):
            await heard.wait()
            heard.clear()
            await others.wait()
    else:
        await asyncio.sleep(QUIET_S)  # the subject: nothing is told
        assert not heard.is_set()


async def test_what_becomes_of_own_pairs_is_not_even_heard(
    kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dozens of messages, of a kilobyte each, about every container that starts."""
    heard: set[tuple[int, str]] = set()
    word = asyncio.Event()

    def hear(kind: int, body: bytes) -> None:
        heard.add((kind, body[20:36].partition(b"\0")[0].decode()))
        word.set()

    async def told(*wanted: tuple[int, str]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not heard.issuperset(wanted):
                word.clear()
                await word.wait()

    monkeypatch.setattr(kernel._foreign, "_on_link", hear)
    pair = replace(VETH, name="nphother", peer="npsother", mac="02:00:00:00:01:07")
    await kernel.ensure((pair,))
    run("ip", "link", "add", "other0", "type", "veth", "peer", "name", "other1")
    await told((watch.NEWLINK, "other0"))
    assert {name for _, name in heard} <= {"other0", "other1", BRIDGE.name}
    run("ip", "link", "del", pair.name)
    await told((watch.DELLINK, pair.name), (watch.DELLINK, pair.peer))
