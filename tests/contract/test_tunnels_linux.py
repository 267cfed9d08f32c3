"""VXLAN links, their peers and strangers, in the real kernel."""

import os
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

pytest.register_assert_rewrite("kernel_suite", "tunnel_suite", "linux_host")

from kernel_suite import BRIDGE, VETH, whats  # noqa: E402
from linux_host import LinuxHost, LinuxSurroundings, run  # noqa: E402
from living import until  # noqa: E402
from tunnel_suite import (  # noqa: E402
    FDB,
    FILTER,
    REMOTE,
    TUNNEL,
    VTEP,
    VTEP6,
    VXLAN,
    VXLAN6,
    WAY,
    WAYS,
    TunnelSuite,
)
from tunnel_suite import VETH as PORT  # noqa: E402

from netplug.drivers.naming import mark  # noqa: E402
from netplug.drivers.steps import Element, Hook, Proto, Table  # noqa: E402
from netplug.drivers.tunnel import Neighbour, Vxlan  # noqa: E402
from netplug.kernel.api import Outcome, StepError  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


class TestLinuxTunnels(LinuxHost, TunnelSuite):
    @pytest.mark.parametrize("step", [VXLAN, VXLAN6], ids=["IPv4", "IPv6"])
    async def test_link_is_as_ip_and_bridge_show_it(self, kernel: LinuxKernel, step: Vxlan) -> None:
        await kernel.ensure((BRIDGE, step))
        shown = run("ip", "-d", "link", "show", step.name)
        for words in (
            f"vxlan id {step.vni} local {step.local} ",
            f"dstport {step.port} nolearning",
            "bridge_slave state forwarding",
            " learning off flood off ",
            " neigh_suppress on ",
            " mcast_flood off bcast_flood off ",
            f"altname {mark(step.name)}",
        ):
            assert words in shown
        assert " dev " not in shown.split("vxlan id")[1].split("dstport")[0]

    async def test_what_others_changed_of_a_port_is_mended(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE, VXLAN))
        run("bridge", "link", "set", "dev", VXLAN.name, "learning", "on", "flood", "on", "neigh_suppress", "off")
        (what,) = await whats(kernel, VXLAN)
        assert "port flag learning is on" in what
        assert "port flag neigh_suppress is off" in what
        assert await kernel.ensure((VXLAN,)) == [Outcome.ADJUSTED]
        assert await whats(kernel, VXLAN) == []
        run("ip", "link", "set", VXLAN.name, "nomaster")
        assert len(await whats(kernel, VXLAN, FDB)) == 2
        assert await kernel.ensure((VXLAN,)) == [Outcome.ADJUSTED]
        assert await whats(kernel, VXLAN) == []

    async def test_entry_that_the_bridge_lost_is_put_back(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE, VXLAN, FDB))
        run("bridge", "fdb", "del", FDB.mac, "dev", FDB.link, "master")
        assert await whats(kernel, FDB) == ["the bridge has no static FDB entry"]
        assert await kernel.ensure((FDB,)) == [Outcome.ADJUSTED]
        assert await whats(kernel, FDB) == []

    async def test_entry_that_another_wrote_over_ours_is_ours_again(self, kernel: LinuxKernel) -> None:
        """The kernel would keep what the other marked it with, which is nothing, whoever writes over it."""
        await kernel.ensure((BRIDGE, VXLAN, FDB))
        run("bridge", "fdb", "replace", FDB.mac, "dev", FDB.link, "dst", "10.5.0.9", "self")
        assert len(await whats(kernel, FDB)) == 1
        assert await kernel.ensure((FDB,)) == [Outcome.ADJUSTED]
        assert await whats(kernel, FDB) == []

    async def test_mac_that_a_local_port_had_is_taken_over_and_kept(self, kernel: LinuxKernel) -> None:
        """Else the entry would be refused (it exists), or the port would have it back with its next frame."""
        await kernel.ensure((BRIDGE, VXLAN, VETH))
        run("ip", "link", "set", VETH.peer, "up")
        until(lambda: "state forwarding" in run("bridge", "link", "show", "dev", VETH.name), "the port is up")
        run("bridge", "fdb", "add", FDB.mac, "dev", VETH.name, "master", "dynamic")
        assert await kernel.ensure((FDB,)) == [Outcome.CREATED]
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as thief:
            thief.bind((VETH.peer, 0))
            thief.send(b"\xff" * 6 + bytes.fromhex(FDB.mac.replace(":", "")) + b"\x88\xb5" + bytes(46))
        assert f"{FDB.mac} dev {FDB.link} sticky master" in run("bridge", "fdb", "show")
        assert await whats(kernel, FDB) == []

    async def test_foreign_neighbour_is_used_or_refused_and_stays(self, kernel: LinuxKernel) -> None:
        step = Neighbour(BRIDGE.name, ip_address("10.9.0.9"), FDB.mac)
        await kernel.ensure((BRIDGE, VXLAN))
        run("ip", "neigh", "add", "10.9.0.9", "lladdr", FDB.mac, "dev", BRIDGE.name)
        assert await kernel.ensure((step,)) == [Outcome.USED]
        await kernel.remove((step,))
        assert FDB.mac in run("ip", "neigh")
        run("ip", "neigh", "replace", "10.9.0.9", "lladdr", "02:00:00:00:00:99", "dev", BRIDGE.name)
        with pytest.raises(StepError, match="02:00:00:00:00:99 that is not ours"):
            await kernel.ensure((step,))

    async def test_udp_port_of_another_socket_is_named(self, kernel: LinuxKernel, around: LinuxSurroundings) -> None:
        around.take_port(Proto.UDP, ip_address("0.0.0.0"), VXLAN.port)
        with pytest.raises(StepError, match="UDP port 4789") as caught:
            await kernel.ensure((BRIDGE, VXLAN))
        assert caught.value.kind == "unavailable"
        assert await whats(kernel, VXLAN) == ["missing"]

    async def test_vni_of_a_link_that_was_moved_away_is_refused(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        around.add_vxlan("swarm0", VXLAN.vni, VXLAN.port)
        run("ip", "link", "set", "swarm0", "netns", Path(around.sandbox()).name)
        with pytest.raises(StepError, match="moved to another namespace"):
            await kernel.ensure((BRIDGE, VXLAN))

    async def test_table_reads_back_as_nft_writes_it(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((FILTER, TUNNEL, VTEP, VTEP6))
        listing = " ".join(run("nft", "list", "ruleset").split())
        assert "elements = { 4789 . 0x1001 }" in listing
        assert "elements = { 10.5.0.2 . 4789 . 0x1001 }" in listing
        assert "elements = { fd00:5::2 . 4789 . 0x1001 }" in listing
        owned = await kernel.owned()
        assert {step.key for step in owned.of(Table)} == {FILTER.key}
        assert owned.of(Element) == {TUNNEL, VTEP, VTEP6}

    async def test_fast_path_of_a_former_release_is_replaced(self, kernel: LinuxKernel) -> None:
        """Its base chains had the rules themselves, and so used the sets."""
        await kernel.ensure((BRIDGE, VXLAN, PORT))
        run("nft", "-f", "-", text=f"""
            table netdev netplug-{VXLAN.name} {{
                map near {{ type ether_addr : iface_index; elements = {{ {PORT.peer_mac} : "{PORT.name}" }}; }}
                set remote {{ type ether_addr; elements = {{ {FDB.mac} }}; }}
                chain tunnel {{
                    type filter hook ingress device {VXLAN.name} priority 0
                    fwd to ether daddr map @near
                }}
                chain {PORT.name} {{
                    type filter hook ingress device {PORT.name} priority 0
                    ether daddr != @remote accept
                    ip saddr 10.9.0.3 fwd to {VXLAN.name}
                }}
            }}""")  # fmt: skip
        steps = (*WAYS, *WAY, REMOTE)
        assert len(await whats(kernel, *steps)) > 1
        await kernel.ensure(steps)
        assert await whats(kernel, *steps) == []
        owned = await kernel.owned()
        assert {step.key for step in owned.of(Table, Element, Hook)} == {step.key for step in steps}
