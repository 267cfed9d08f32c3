"""Who waits for pyroute2 to be loaded: whoever gives something a rate, and nobody else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOADED = """
import asyncio, sys
from netplug import log
log.configure()
def loaded(*names):
    print(sorted(it for it in sys.modules if it in names or not names and it.partition(".")[0] == "pyroute2"))
"""
WORK = """
from dataclasses import replace
from ipaddress import ip_address, ip_network
from kernel_suite import ANTISPOOF_TABLE, BRIDGE, GATEWAY, IFB, NETWORKS_TABLE, VETH
from netplug.drivers.steps import Element, Flows, Gate, HostPort, Proto, Route, Shape
from netplug.drivers.tables import NETWORKS
from netplug.kernel.linux import LinuxKernel
from netplug.kernel.sandbox import netns

PLAIN = (
    BRIDGE, GATEWAY, replace(VETH, pinned=True), Route(ip_network("10.8.0.0/16"), BRIDGE.name, ip_address("10.9.0.7")),
    NETWORKS_TABLE, ANTISPOOF_TABLE, Element(NETWORKS, "home4", "10.9.0.0/24 . np-test"), Gate(4, "nft"),
    HostPort(Proto.UDP, ip_address("0.0.0.0"), 5353), Flows(Proto.UDP, 5353, ip_address("10.9.0.2")),
)
LIMITED = (IFB, Shape(VETH.name, IFB.name, (8_000_000, 9_000_000), (65_536, 70_000)))

async def main():
    async with await LinuxKernel.open() as kernel:
        await kernel.ensure(PLAIN)
        assert not await kernel.drift(PLAIN)
        loaded()
        await kernel.ensure(LIMITED)
        assert not await kernel.drift((*PLAIN, *LIMITED))
        loaded("pyroute2.netlink.rtnl.tcmsg", "pyroute2.iproute", "pyroute2.ndb", "pyroute2.netlink.nlsocket")
        await kernel.remove((*PLAIN, *LIMITED)[::-1])
        await kernel.settle()

with netns.temporary_netns():
    asyncio.run(main())
"""


def run(program: str) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", LOADED + program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")
def test_schemas_alone_are_loaded_and_for_a_rate_alone() -> None:
    assert run(WORK) == ["[]", "['pyroute2.netlink.rtnl.tcmsg']"]


def test_daemon_and_cni_without_one_start_without_it() -> None:
    assert run("import netplug.daemon.life, netplug.daemon.daemonless; loaded()") == ["[]"]


def test_whole_library_is_there_for_who_asks_for_it() -> None:
    ask = "from netplug.kernel.netlink import traffic_control as tc; tc.qdiscs(); loaded('pyroute2.iproute');"
    assert run(ask + "from pyroute2 import IPRoute; print(IPRoute.__name__)") == ["[]", "IPRoute"]


def test_messages_go_without_the_garbage_collector() -> None:
    """A daemon that starts collects none, and reads the limits of all endpoints."""
    read = (
        "import gc; from netplug.kernel.netlink import traffic_control as tc;"
        "dump = [tc.bucket(7, 10_000_000, 400_000, 64_000)], [tc.redirect(7, 8)];"
        "read = lambda: print(list(tc.buckets(dump[0], {7})), tc.redirected([bytes(8) + b'\\1' + dump[1][0][9:]]));"
        "read(); gc.collect(); gc.disable(); read(); print(gc.collect())"
    )
    found = "[(7, 10000000, 400000)] 8"
    assert run(read) == [found, found, "0"]
