"""The real kernel, in a network namespace of the test's own."""

import asyncio
import errno
import os
import socket
import threading
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

pytest.register_assert_rewrite("inspection_suite", "kernel_suite", "ports_suite", "tunnel_suite", "linux_host")

from inspection_suite import InspectionSuite  # noqa: E402
from kernel_suite import BRIDGE, GATEWAY, HOST_MACVLAN, IFB, MACVLAN, NETWORKS_TABLE, VETH, KernelSuite, whats  # noqa: E402
from linux_host import VANISH_DEADLINE_S, LinuxHost, LinuxSurroundings, descriptors, run  # noqa: E402
from living import until  # noqa: E402
from ports_suite import PortsSuite  # noqa: E402
from tunnel_suite import VXLAN  # noqa: E402

from netplug.drivers import routing  # noqa: E402
from netplug.drivers.naming import mac_of_address, mark  # noqa: E402
from netplug.drivers.plan import Plan  # noqa: E402
from netplug.drivers.steps import (  # noqa: E402
    Address,
    Announce,
    Bridge,
    Element,
    Flows,
    Gate,
    HostPort,
    Ifb,
    Macvlan,
    Passage,
    Proto,
    Route,
    Step,
    Veth,
)
from netplug.drivers.tables import NETWORKS  # noqa: E402
from netplug.drivers.tunnel import Vxlan  # noqa: E402
from netplug.errors import NetplugError  # noqa: E402
from netplug.kernel.api import Outcome, StepError  # noqa: E402
from netplug.kernel.executor import Executor  # noqa: E402
from netplug.kernel.host.api import RefusingRoute  # noqa: E402
from netplug.kernel.links import announcements, reaper  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402
from netplug.kernel.netlink.connection import Netlink, NetlinkError  # noqa: E402
from netplug.kernel.netlink.rtnl import DELETE_GROUPS  # noqa: E402
from netplug.kernel.sandbox import netns  # noqa: E402
from netplug.kernel.sandbox.proc_mount import SANDBOXES  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


Made = Bridge | Veth | Macvlan | Ifb | Vxlan
AF_XDP = 44
ROUTE = Route(ip_network("10.7.0.0/16"), BRIDGE.name)
LED = Element(NETWORKS, "published4_any", "tcp . 8080", "10.9.0.2 . 80")
GATE = Gate(4, "nft")
CLONE_NEWNS = 0x00020000


def lose_settings() -> None:
    """Have /proc/sys be read-only to this thread, as in a container."""
    netns._call("unshare", CLONE_NEWNS)
    run("mount", "--make-rprivate", "/")
    run("mount", "--bind", "/proc/sys", "/proc/sys")
    run("mount", "-o", "remount,bind,ro", "/proc/sys")


def once_refused(monkeypatch: pytest.MonkeyPatch, *removal: str) -> list[int]:
    """Have ``ip`` remove what is in the way as soon as the kernel has refused something for it; return when it has."""
    request, refused = Netlink.request, []

    def refuses(nl: Netlink, kind: int, message: bytes, flags: int = 0) -> None:
        try:
            request(nl, kind, message, flags)
        except NetlinkError as error:
            if error.errno == errno.EEXIST and not refused:
                refused.append(kind)
                run("ip", *removal)
            raise

    monkeypatch.setattr(Netlink, "request", refuses)
    return refused


async def comes_to_be(port: str, state: str) -> None:
    """Wait for the state of a port: the kernel looks at a carrier a while later."""
    async with asyncio.timeout(VANISH_DEADLINE_S):
        while f"state {state} " not in run("bridge", "link", "show", "dev", port):  # noqa: ASYNC110 - a state, not an event
            await asyncio.sleep(0.01)


class TestLinuxKernel(LinuxHost, KernelSuite):
    async def test_both_ends_bear_our_mark_and_the_port_has_no_address(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        netns = around.sandbox()
        await kernel.ensure((BRIDGE, Veth("nph1", "eth0", VETH.mac, VETH.peer_mac, 1500, BRIDGE.name, netns=netns)))
        host = run("ip", "-d", "link", "show", "nph1")
        assert f"altname {mark('nph1')}" in host
        assert run("sysctl", "-n", "net.ipv6.conf.nph1.disable_ipv6", "net.ipv4.conf.nph1.arp_ignore").split() == [
            "1",
            "8",
        ]
        assert "state forwarding" in host
        inside = run("ip", "-n", Path(netns).name, "-d", "link", "show", "eth0")
        assert f"altname {mark('eth0')}" in inside
        assert "LOWER_UP" in inside
        assert "inet6" not in run("ip", "address", "show", "nph1")

    async def test_what_others_changed_of_how_a_link_listens_is_mended(self, kernel: LinuxKernel) -> None:
        alone = replace(VETH, name="np-alone", peer="npsalone", master="")
        await kernel.ensure((BRIDGE, VETH, alone, IFB))
        for name, setting in (
            (BRIDGE.name, "ipv6.conf.{}.accept_ra=1"),
            (BRIDGE.name, "ipv4.conf.{}.accept_redirects=1"),
            (VETH.name, "ipv6.conf.{}.disable_ipv6=0"),
            (VETH.name, "ipv4.conf.{}.arp_ignore=0"),
            (alone.name, "ipv6.conf.{}.accept_ra=2"),
            (IFB.name, "ipv6.conf.{}.disable_ipv6=0"),
        ):
            run("sysctl", "-qw", "net." + setting.format(name))
        run("ip", "link", "set", BRIDGE.name, "type", "bridge", "no_linklocal_learn", "0")
        assert await whats(kernel, BRIDGE, VETH, alone, IFB) == [
            "accept_ra is 1, not 0, accept_redirects is 1, not 0, learns MACs from link-local frames",
            "disable_ipv6 is 0, not 1, arp_ignore is 0, not 8",
            "accept_ra is 2, not 0",
            "disable_ipv6 is 0, not 1",
        ]
        assert await kernel.ensure((BRIDGE, VETH, alone, IFB)) == [Outcome.ADJUSTED] * 4
        assert await whats(kernel, BRIDGE, VETH, alone, IFB) == []

    async def test_port_passes_frames_again(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE, VETH))
        run("ip", "link", "set", VETH.peer, "up")
        await comes_to_be(VETH.name, "forwarding")  # a carrier that comes late would have it forward after what is set
        flags = ("state", "0", "locked", "on", "flood", "off", "mcast_flood", "off", "bcast_flood", "off")
        run("bridge", "link", "set", "dev", VETH.name, *flags)
        wrong = "port flag flood is off, port flag mcast_flood is off, port flag bcast_flood is off, port is locked"
        assert await whats(kernel, BRIDGE, VETH) == [f"state of the port is not forwarding, {wrong}"]
        assert await kernel.ensure((BRIDGE, VETH)) == [Outcome.EQUAL, Outcome.ADJUSTED]
        assert await whats(kernel, BRIDGE, VETH) == []
        shown = run("bridge", "-d", "link", "show", "dev", VETH.name)
        assert [it in shown for it in ("state forwarding", " flood on ", " mcast_flood on ", " locked off ")] == [
            True
        ] * 4

    async def test_state_of_a_port_is_the_kernels_where_it_decides(self, kernel: LinuxKernel) -> None:
        """Without a carrier, on a bridge that is down, and where the bridge runs the spanning tree protocol."""
        await kernel.ensure((BRIDGE, VETH))
        await comes_to_be(VETH.name, "disabled")
        assert await whats(kernel, BRIDGE, VETH) == []
        run("ip", "link", "set", VETH.peer, "up")
        run("ip", "link", "set", BRIDGE.name, "down")
        assert await whats(kernel, VETH) == []
        run("ip", "link", "set", BRIDGE.name, "type", "bridge", "stp_state", "1")
        run("ip", "link", "set", BRIDGE.name, "up")
        await comes_to_be(VETH.name, "listening")
        (what,) = await whats(kernel, BRIDGE, VETH)
        assert what.endswith("runs the spanning tree protocol")
        assert await kernel.ensure((BRIDGE, VETH)) == [Outcome.ADJUSTED, Outcome.EQUAL]
        assert await whats(kernel, BRIDGE, VETH) == []
        assert "state forwarding" in run("bridge", "link", "show", "dev", VETH.name)

    async def test_bridge_is_told_again_who_is_at_a_pinned_port(self, kernel: LinuxKernel) -> None:
        pinned = replace(VETH, pinned=True)
        await kernel.ensure((BRIDGE, pinned))
        run("bridge", "fdb", "del", pinned.peer_mac, "dev", pinned.name, "master")
        run("bridge", "link", "set", "dev", pinned.name, "learning", "on")
        assert await whats(kernel, pinned) == [
            f"port learns MACs, the bridge has no static FDB entry for {pinned.peer_mac}"
        ]
        assert await kernel.ensure((pinned,)) == [Outcome.ADJUSTED]
        run("ip", "link", "del", BRIDGE.name)
        assert await kernel.ensure((BRIDGE, pinned)) == [Outcome.CREATED, Outcome.ADJUSTED]
        assert await whats(kernel, pinned) == []
        shown = run("bridge", "fdb", "show", "dev", pinned.name)
        assert f"{pinned.peer_mac} sticky master {BRIDGE.name} static" in shown

    async def test_bridge_forgets_who_was_at_a_pinned_port(self, kernel: LinuxKernel) -> None:
        old, new = replace(VETH, pinned=True), replace(VETH, pinned=True, peer_mac="02:00:00:00:02:99")
        other = replace(VETH, name="npoth", peer="npsoth", peer_mac="02:00:00:00:02:55", pinned=True)
        await kernel.ensure((BRIDGE, old, other))
        assert await kernel.ensure((new,)) == [Outcome.ADJUSTED]
        assert await whats(kernel, new, other) == []
        shown = run("bridge", "fdb", "show", "dev", VETH.name)
        assert (old.peer_mac in shown, f"{new.peer_mac} sticky master" in shown) == (False, True)
        run("bridge", "fdb", "add", old.peer_mac, "dev", VETH.name, "master", "static", "sticky")
        assert await whats(kernel, new) == [f"the bridge has a static FDB entry for {old.peer_mac}"]
        assert await kernel.ensure((new,)) == [Outcome.ADJUSTED]
        assert await whats(kernel, new, other) == []

    async def test_bridge_finds_by_itself_who_is_at_a_port_that_is_not_pinned_any_more(
        self, kernel: LinuxKernel
    ) -> None:
        await kernel.ensure((BRIDGE, replace(VETH, pinned=True)))
        assert await whats(kernel, VETH) == [
            f"port does not learn MACs, the bridge has a static FDB entry for {VETH.peer_mac}"
        ]
        assert await kernel.ensure((VETH,)) == [Outcome.ADJUSTED]
        assert " learning on " in run("bridge", "-d", "link", "show", "dev", VETH.name)
        assert VETH.peer_mac not in run("bridge", "fdb", "show", "dev", VETH.name)

    @pytest.mark.parametrize(
        "step",
        [BRIDGE, VETH, replace(VETH, master=""), MACVLAN, HOST_MACVLAN, IFB, VXLAN],
        ids=["bridge", "veth", "veth alone", "macvlan in a sandbox", "macvlan", "ifb", "vxlan"],
    )
    async def test_link_whose_settings_cannot_be_made_goes_again(
        self, kernel: LinuxKernel, around: LinuxSurroundings, step: Step, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(SANDBOXES, "_refused", True)  # who may mount proc can make all settings
        if step is MACVLAN:
            step = replace(MACVLAN, ifname="eth0", netns=around.sandbox())
        if step is not BRIDGE:
            await kernel.ensure((BRIDGE,))
        before = around.snapshot()
        kernel._nl.forget_ipv6_conf()  # as a daemon that starts there
        await kernel._requests._worker.do(lose_settings)
        with pytest.raises(StepError, match=r"/\w+: Read-only file system \(mount ") as caught:
            await kernel.ensure((step,))
        assert (caught.value.kind, caught.value.step) == ("internal", step)
        assert around.snapshot() == before
        if isinstance(step, Macvlan) and step.netns:
            assert "eth0" not in run("ip", "-n", Path(step.netns).name, "link")

    async def test_loop_goes_on_while_an_announcement_waits_for_the_kernel(
        self, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = replace(BRIDGE, name="np-other", mac="02:00:00:00:00:02")
        await kernel.ensure((BRIDGE, other))
        held, go_on = threading.Event(), threading.Event()
        delete = kernel._reaper._delete

        def slowly(groups: frozenset[int]) -> dict[int, OSError]:
            with kernel._nl._lock:
                held.set()
                go_on.wait(1)  # the loop, if it waits for us, comes no sooner
            return delete(groups)

        monkeypatch.setattr(kernel._reaper, "_delete", slowly)
        await kernel.remove((other,))
        assert await asyncio.to_thread(held.wait, VANISH_DEADLINE_S)
        announced = asyncio.create_task(kernel.ensure((Announce(BRIDGE.name, VETH.peer_mac, ip_address("10.9.0.2")),)))
        for _ in range(100):  # the loop turns, and it waits
            await asyncio.sleep(0)
        assert not announced.done()
        go_on.set()
        assert await announced == [Outcome.EQUAL]
        await kernel.settle()

    async def test_mac_that_comes_back_at_another_port_is_there(self, kernel: LinuxKernel) -> None:
        """While the link of its former life is still being deleted."""
        first, second = (
            replace(VETH, name=f"nphtest{n}", peer=f"npstest{n}", mac=f"02:00:00:00:01:0{n}", pinned=True)
            for n in (1, 2)
        )
        await kernel.ensure((BRIDGE, first))
        await kernel.remove((first,))
        await kernel.ensure((second,))
        await kernel.settle()
        assert await whats(kernel, second) == []

    @pytest.mark.parametrize("then", ["veth", "macvlan"])
    async def test_name_in_a_sandbox_is_taken_again_at_once(
        self, kernel: LinuxKernel, around: LinuxSurroundings, monkeypatch: pytest.MonkeyPatch, then: str
    ) -> None:
        """While the pair whose end had it is still being deleted."""
        netns = around.sandbox()
        first = replace(VETH, name="nphfirst", peer="eth0", mac="02:00:00:00:01:07", netns=netns)
        second = {
            "veth": replace(VETH, peer="eth0", netns=netns),
            "macvlan": replace(MACVLAN, ifname="eth0", netns=netns),
        }
        await kernel.ensure((BRIDGE, first))
        going, go_on = asyncio.Event(), threading.Event()
        delete, settle = kernel._reaper._delete, kernel._reaper.settle

        def late(groups: frozenset[int]) -> dict[int, OSError]:
            assert go_on.wait(VANISH_DEADLINE_S)
            return delete(groups)

        async def waits(name: str | None = None) -> None:
            going.set()
            await settle(name)

        monkeypatch.setattr(kernel._reaper, "_delete", late)
        monkeypatch.setattr(kernel._reaper, "settle", waits)
        await kernel.remove((first,))
        made = asyncio.create_task(kernel.ensure((second[then],)))
        async with asyncio.timeout(VANISH_DEADLINE_S):
            await asyncio.wait([made, asyncio.create_task(going.wait())], return_when=asyncio.FIRST_COMPLETED)
        go_on.set()
        assert await made == [Outcome.CREATED]
        assert await whats(kernel, second[then]) == []

    @pytest.mark.parametrize("step", [BRIDGE, VETH, HOST_MACVLAN, IFB, VXLAN], ids=lambda step: type(step).__name__)
    async def test_link_that_went_when_it_had_been_in_the_way_is_no_obstacle(
        self, kernel: LinuxKernel, around: LinuxSurroundings, monkeypatch: pytest.MonkeyPatch, step: Made
    ) -> None:
        """It goes between the answer of the kernel, which does not say what it is, and our look for it."""
        await kernel.ensure((BRIDGE,) if step is not BRIDGE else ())
        if step is VXLAN:
            around.add_vxlan("flannel.1", VXLAN.vni, VXLAN.port)
        else:
            around.add_link(step.name, "bridge")
        rival = "flannel.1" if step is VXLAN else step.name
        refused = once_refused(monkeypatch, "link", "del", rival)
        assert await kernel.ensure((step,)) == [Outcome.CREATED]
        assert len(refused) == 1
        assert await whats(kernel, step) == []

    @pytest.mark.parametrize("step", [GATEWAY, ROUTE], ids=lambda step: type(step).__name__)
    async def test_address_or_route_that_went_when_it_had_been_in_the_way_is_no_obstacle(
        self, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch, step: Address | Route
    ) -> None:
        await kernel.ensure((BRIDGE,))
        kind, what = ("address", step.address) if isinstance(step, Address) else ("route", step.destination)
        rival = (kind, "{}", str(what), "dev", BRIDGE.name)
        run("ip", *(word.format("add") for word in rival))
        refused = once_refused(monkeypatch, *(word.format("del") for word in rival))
        assert await kernel.ensure((step,)) == [Outcome.CREATED]
        assert len(refused) == 1
        assert await whats(kernel, step) == []

    @pytest.mark.parametrize("slaac", [False, True])
    async def test_link_in_a_sandbox_believes_routers_only_if_it_shall(
        self, kernel: LinuxKernel, around: LinuxSurroundings, *, slaac: bool
    ) -> None:
        netns = around.sandbox()
        veth = replace(VETH, peer="eth0", netns=netns, slaac=slaac)
        macvlan = replace(MACVLAN, ifname="eth1", netns=netns, slaac=slaac)
        await kernel.ensure((BRIDGE, veth, macvlan))
        names = [f"net.ipv6.conf.{link}.{name}" for link in ("eth0", "eth1") for name in ("accept_ra", "autoconf")]
        found = run("ip", "netns", "exec", Path(netns).name, "sysctl", "-n", *names).split()
        assert found == ["1" if slaac else "0"] * 4

    async def test_host_takes_redirects_again_only_if_it_did(self, kernel: LinuxKernel) -> None:
        """The kernel changes that with forwarding."""
        names = ("net.ipv4.ip_forward", "net.ipv4.conf.all.accept_redirects")
        for redirects in ("0", "1"):
            run("sysctl", "-qw", f"{names[0]}=0", f"{names[1]}={redirects}")
            facts = await kernel.facts()
            assert (4 in facts.forwarding, facts.redirects) == (False, redirects == "1")
            plan = routing.forwarding(4, facts)
            await Executor(kernel).apply(plan)
            assert run("sysctl", "-n", *names).split() == ["1", "0"]
            await Executor(kernel).revert(plan)
            assert run("sysctl", "-n", *names).split() == ["0", redirects]

    async def test_host_forgets_where_an_address_was_before(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE,))
        for address in ("10.9.0.2", "fd00:9::2"):
            run(
                "ip", "neigh", "replace", address, "lladdr", "02:00:00:00:09:09", "dev", BRIDGE.name, "nud", "reachable"
            )
            assert await kernel.ensure((Announce(BRIDGE.name, VETH.peer_mac, ip_address(address)),)) == [Outcome.EQUAL]
            assert VETH.peer_mac in run("ip", "neigh", "show", address)
        assert await kernel.ensure((Announce(BRIDGE.name, VETH.peer_mac, ip_address("10.9.0.3")),)) == [Outcome.EQUAL]
        assert run("ip", "neigh", "show", "10.9.0.3") == ""

    @pytest.mark.parametrize("up", [False, True])
    async def test_dark_segment_is_told_once_it_carries(self, kernel: LinuxKernel, *, up: bool) -> None:
        run("ip", "link", "add", "dark0", *(["up"] if up else []), "type", "veth", "peer", "name", "other0")
        told, taken = (Announce("dark0", VETH.peer_mac, ip_address(f"10.9.0.{n}")) for n in (2, 3))
        assert await kernel.ensure((told, taken)) == [Outcome.EQUAL] * 2
        await kernel.remove((taken,))
        run("ip", "link", "set", "other0", "up")
        # The loop has not heard of it yet.
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as ear:
            ear.bind(("other0", 0x0806))
            ear.setblocking(False)
            run("ip", "link", "set", "dark0", "up")
            async with asyncio.timeout(VANISH_DEADLINE_S):
                frame = await asyncio.get_running_loop().sock_recv(ear, 2048)
            assert frame[28:32] == told.address.packed
            with pytest.raises(BlockingIOError):
                ear.recv(2048)

    async def test_attach_waits_for_no_announcement_that_neighbours_hardly_need(
        self, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A MAC that follows from its address is sent later, one that somebody chose at once."""
        monkeypatch.setattr(announcements, "LATER_S", 10 * VANISH_DEADLINE_S)
        run("ip", "link", "add", "told0", "up", "type", "veth", "peer", "name", "other0")
        run("ip", "link", "set", "other0", "up")
        first = ip_interface("10.9.0.2/24")
        usual = Announce("told0", mac_of_address(first), first.ip)
        chosen = Announce("told0", VETH.peer_mac, ip_address("10.9.0.3"))
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as ear:
            ear.bind(("other0", 0x0806))
            ear.setblocking(False)
            assert await kernel.ensure((usual, chosen)) == [Outcome.EQUAL] * 2
            async with asyncio.timeout(VANISH_DEADLINE_S):
                frames = [await asyncio.get_running_loop().sock_recv(ear, 2048)]
                kernel._announcements.close()  # does not lose what waits
                frames.append(await asyncio.get_running_loop().sock_recv(ear, 2048))
        assert [it[28:32] for it in frames] == [chosen.address.packed, usual.address.packed]

    async def test_link_that_is_removed_once_more_while_it_goes_is_gone(
        self, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second removal takes it out of the group that is being deleted, into the next."""
        await kernel.ensure((BRIDGE,))
        begun, again = threading.Event(), threading.Event()
        delete = kernel._reaper._delete

        def late(groups: frozenset[int]) -> dict[int, OSError]:
            begun.set()
            assert again.wait(VANISH_DEADLINE_S)
            return delete(groups)

        monkeypatch.setattr(kernel._reaper, "_delete", late)
        await kernel.remove((BRIDGE,))
        assert await asyncio.to_thread(begun.wait, VANISH_DEADLINE_S)
        await kernel.remove((BRIDGE,))
        again.set()
        await kernel.settle()
        assert BRIDGE.name not in run("ip", "link")

    async def test_link_whose_deletion_failed_is_deleted_later(
        self, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await kernel.ensure((BRIDGE,))
        request, left = kernel._reaper._request, 3

        def refused(message: bytes) -> None:
            nonlocal left
            left -= 1
            if left >= 0:
                raise OSError(errno.ENOBUFS, "no buffer space")
            request(message)

        monkeypatch.setattr(kernel._reaper, "_request", refused)
        monkeypatch.setattr(reaper, "FIRST_RETRY_S", 0.01)
        await kernel.remove((BRIDGE,))
        await kernel.settle()
        assert left < 0
        assert BRIDGE.name not in run("ip", "link")
        assert await kernel.ensure((BRIDGE,)) == [Outcome.CREATED]

    async def test_end_does_not_wait_for_a_deletion_that_fails(
        self, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(message: bytes) -> None:
            raise OSError(errno.EPERM, "not permitted")

        await kernel.ensure((BRIDGE,))
        monkeypatch.setattr(kernel._reaper, "_request", refused)
        await kernel.remove((BRIDGE,))
        async with asyncio.timeout(VANISH_DEADLINE_S):
            await kernel._reaper.close()

    async def test_pair_whose_maker_died_before_marking_it_is_removed(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE,))
        run("ip", "link", "add", VETH.name, "address", VETH.mac, "type", "veth", "peer", "name", VETH.peer)
        await kernel.remove((VETH,))
        await kernel.settle()
        assert await whats(kernel, VETH) == ["missing"]
        assert VETH.peer not in run("ip", "-o", "link")

    async def test_strangers_pair_of_our_name_is_left_alone(self, kernel: LinuxKernel) -> None:
        run("ip", "link", "add", VETH.name, "type", "veth", "peer", "name", VETH.peer)
        await kernel.remove((VETH,))
        await kernel.settle()
        assert VETH.peer in run("ip", "-o", "link")

    @pytest.mark.parametrize("moved", [False, True])
    async def test_neighbour_that_was_asked_for_while_its_link_was_down_is_asked_for_again(
        self, kernel: LinuxKernel, around: LinuxSurroundings, *, moved: bool
    ) -> None:
        """The kernel of the sandbox would repeat the request when a second is over."""
        netns = around.sandbox()
        inside = ("ip", "netns", "exec", Path(netns).name)
        veth = replace(VETH, netns=None if moved else netns, peer=VETH.peer if moved else "eth0")
        await kernel.ensure((BRIDGE, veth))
        if moved:
            run("ip", "link", "set", VETH.peer, "netns", Path(netns).name, "name", "eth0")
            veth = replace(veth, moved=netns)
        run(*inside, "ip", "address", "add", "10.9.0.2/24", "dev", "eth0")
        run(*inside, "ip", "link", "set", "eth0", "up")
        run(*inside, "sysctl", "-qw", "net.ipv4.neigh.eth0.retrans_time_ms=60000")
        # The kernel forgets neighbours a while after the carrier is lost, too (net/core/link_watch.c).
        state = (*inside, "ip", "link", "show", "eth0")
        until(lambda: " state UP " in run(*state), "the carrier is there")
        run("ip", "link", "set", veth.name, "down")
        until(lambda: " state UP " not in run(*state), "the carrier is lost")
        run(*inside, "bash", "-c", "echo > /dev/udp/10.9.0.7/9")
        assert "10.9.0.7 dev eth0 INCOMPLETE" in run(*inside, "ip", "neigh")
        assert await kernel.ensure((veth,)) == [Outcome.ADJUSTED]
        assert run(*inside, "ip", "-4", "neigh") == ""

    async def test_port_of_a_bridge_that_was_deleted_comes_back(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE, VETH))
        run("ip", "link", "del", BRIDGE.name)
        assert await whats(kernel, BRIDGE, VETH) == ["missing", f"is not a port of {BRIDGE.name!r}"]
        assert await kernel.ensure((BRIDGE, VETH)) == [Outcome.CREATED, Outcome.ADJUSTED]
        assert await whats(kernel, BRIDGE, VETH) == []

    async def test_stranger_in_the_delete_group_survives(self, kernel: LinuxKernel, around: LinuxSurroundings) -> None:
        around.add_link("stranger", "veth")
        run("ip", "link", "set", "stranger", "group", str(DELETE_GROUPS))
        await kernel.ensure((BRIDGE, VETH))
        await kernel.remove((VETH, BRIDGE))
        await kernel.settle()
        assert "stranger" in run("ip", "-o", "link")
        assert await whats(kernel, BRIDGE, VETH) == ["missing", "missing"]

    async def test_deletions_of_an_earlier_process_are_finished(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE, VETH))
        run("ip", "link", "set", VETH.name, "group", str(DELETE_GROUPS))
        async with await LinuxKernel.open() as second:
            await second.settle()
        assert await whats(kernel, VETH) == ["missing"]

    async def test_link_that_someone_else_is_deleting_is_waited_for(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE, VETH))
        run("ip", "link", "set", VETH.name, "group", str(DELETE_GROUPS))
        assert await kernel.ensure((VETH,)) == [Outcome.CREATED]

    async def test_veth_moved_into_a_sandbox_by_a_runtime_is_equal(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        await kernel.ensure((BRIDGE, VETH))
        name = Path(around.sandbox()).name
        run("ip", "link", "set", VETH.peer, "netns", name, "name", "eth0", "address", "02:00:00:00:00:99")
        assert await whats(kernel, VETH) == []
        assert await kernel.ensure((VETH,)) == [Outcome.EQUAL]

    async def test_flows_that_lead_elsewhere_are_forgotten_and_no_others(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        def track(proto: str, port: int, destination: str, *dnat: str) -> None:
            flow = ["-p", proto, "-s", "10.5.0.9", "-d", destination, "--sport", str(port), "--dport", "8080"]
            state = ["--state", "ESTABLISHED"] if proto == "tcp" else []
            run("conntrack", "-I", *flow, *state, "-t", "100", *dnat)

        def tracked() -> set[int]:
            lines = run("conntrack", "-L").splitlines()
            return {int(line.split("sport=")[1].split()[0]) for line in lines}

        around.add_link("br0", "bridge")
        around.add_address("br0", ip_interface("10.5.0.1/24"))
        track("udp", 1, "10.5.0.1")  # to us, before the port was published
        track("udp", 2, "10.5.0.1", "--dst-nat", "10.9.0.2:80")  # to where it shall
        track("udp", 3, "198.51.100.1")  # through us, to a far host
        track("udp", 4, "203.0.113.5", "--dst-nat", "10.9.0.3:80")  # to an address that we had, a dead container
        track("tcp", 5, "10.5.0.1")
        step = Flows(Proto.UDP, 8080, ip_address("10.9.0.2"))
        # Another port besides: then ports are sorted out here, not by the kernel.
        for steps in ((step,), (step, Flows(Proto.UDP, 8081, ip_address("10.9.0.2")))):
            await kernel.ensure(steps)
            assert tracked() == {2, 3, 5}
            track("udp", 1, "10.5.0.1")
        # Published on another address of the host alone: what leads to ours is somebody else's.
        await kernel.ensure((Flows(Proto.UDP, 8080, ip_address("10.9.0.9"), ip_address("10.5.0.77")),))
        assert tracked() == {1, 2, 3, 5}
        await kernel.remove((step,))
        assert tracked() == {1, 3, 5}

    async def test_flows_of_all_ports_go_with_who_has_them(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        def track(source: str, port: int, destination: str, *more: str, state: str = "") -> None:
            flow = ["-p", "udp", "-s", source, "-d", destination, "--sport", str(port), "--dport", str(port + 8000)]
            run("conntrack", "-I", *flow, "-t", "100", *(["-u", state] if state else []), *more)

        def tracked() -> set[int]:
            lines = run("conntrack", "-L").splitlines()
            return {int(line.split("sport=")[1].split()[0]) for line in lines}

        around.add_link("br0", "bridge")
        around.add_address("br0", ip_interface("10.5.0.1/24"))
        track("10.5.0.9", 1, "10.5.0.1")  # to us, before there was a container
        track("10.5.0.9", 2, "10.5.0.1", state="SEEN_REPLY")  # to a service of ours
        track("10.5.0.9", 3, "10.5.0.1", "--dst-nat", "10.9.0.2")  # to the container
        track("10.5.0.9", 4, "10.5.0.1", "--dst-nat", "10.9.0.3:80")  # to a published port
        track("10.5.0.9", 5, "198.51.100.1")  # through us
        track("10.9.0.2", 6, "198.51.100.1", "--src-nat", "10.5.0.1")  # from the container
        step = Flows(Proto.UDP, 0, ip_address("10.9.0.2"))
        await kernel.ensure((step, Flows(Proto.UDP, 9999, ip_address("10.9.0.3"))))
        assert tracked() == {2, 3, 4, 5, 6}
        await kernel.remove((step,))
        assert tracked() == {2, 4, 5}

    async def test_reserved_port_drops_what_no_rule_takes(self, kernel: LinuxKernel) -> None:
        await kernel.ports.reserve(Proto.TCP, ip_address("127.0.0.1"), 8080, 8080)
        with socket.socket() as client:
            client.settimeout(0.05)
            # Neither accepted nor refused: the client will try again.
            with pytest.raises(TimeoutError):
                client.connect(("127.0.0.1", 8080))

    @pytest.mark.parametrize("proto", [Proto.TCP, Proto.UDP])
    async def test_holder_of_a_port_is_named(
        self, kernel: LinuxKernel, around: LinuxSurroundings, proto: Proto
    ) -> None:
        around.keep_port(proto, ip_address("127.0.0.1"), 8080)  # which does not listen
        with pytest.raises(NetplugError, match=r"8080/\w+ is already in use on this host by process \d+ \(python"):
            await kernel.ports.reserve(proto, ip_address("0.0.0.0"), 8080, 8080)

    async def test_socket_that_has_no_name_stays_with_its_process(self, kernel: LinuxKernel) -> None:
        step = HostPort(Proto.TCP, ip_address("0.0.0.0"), 8080)
        try:
            nameless = socket.socket(AF_XDP, socket.SOCK_RAW)
        except OSError:
            pytest.skip("a kernel without AF_XDP")
        with nameless:
            before = descriptors()
            assert not await kernel.ports.reservations(os.getpid(), "").cover(step)
            assert descriptors() == before

    @pytest.mark.parametrize(
        ("family", "bound", "wanted", "covered"),
        [
            (socket.AF_INET6, "::", "0.0.0.0", True),  # of both families, as podman and programs in Go bind
            (socket.AF_INET6, "::", "127.0.0.1", True),
            (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1", True),
            (socket.AF_INET6, "::1", "::", False),
            (socket.AF_INET, "0.0.0.0", "::", False),
        ],
    )
    async def test_sockets_of_the_caller_cover_what_they_exclude(
        self, kernel: LinuxKernel, family: int, bound: str, wanted: str, *, covered: bool
    ) -> None:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((bound, 8080))
            step = HostPort(Proto.TCP, ip_address(wanted), 8080)
            assert await kernel.ports.reservations(os.getpid(), "").cover(step) is covered

    async def test_connections_of_the_caller_are_no_reservations(self, kernel: LinuxKernel) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            step = HostPort(Proto.TCP, ip_address("127.0.0.1"), client.getsockname()[1])
            assert not await kernel.ports.reservations(os.getpid(), "").cover(step)

    async def test_sctp_that_the_kernel_lacks_is_named(self, kernel: LinuxKernel) -> None:
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
        except OSError:
            with pytest.raises(StepError, match="the kernel has no SCTP") as caught:
                await kernel.ensure((HostPort(Proto.SCTP, ip_address("0.0.0.0"), 8080),))
            assert caught.value.kind == "unavailable"
        else:
            pytest.skip("this kernel has SCTP")

    async def test_removal_leaves_the_loop_free(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE, VETH))
        await kernel.remove((VETH,))
        turns = 0
        settled = asyncio.ensure_future(kernel.settle())
        async with asyncio.timeout(VANISH_DEADLINE_S):
            while not settled.done():  # turns of the loop are the subject
                turns += 1
                await asyncio.sleep(0)
        assert turns > 10


class TestLinuxInspection(LinuxHost, InspectionSuite):
    """In a namespace."""

    async def test_routes_that_drop_are_found(self, kernel: LinuxKernel) -> None:
        wanted = [
            RefusingRoute("blackhole", ip_network("10.9.0.128/25")),
            RefusingRoute("prohibit", ip_network("10.9.0.9/32"), 7),
            RefusingRoute("unreachable", ip_network("fd00:9::/64"), 1024),
        ]
        for route in wanted:
            ip = ("ip", "-6") if route.destination.version == 6 else ("ip",)
            run(*ip, "route", "add", route.kind, str(route.destination), "metric", str(route.metric))
        run("ip", "route", "add", "blackhole", "10.8.0.0/16", "table", "7")
        assert sorted(kernel.inspection.refusing_routes(), key=lambda it: it.kind) == wanted


class TestLinuxPorts(LinuxHost, PortsSuite):
    pass


class TestCancellation(LinuxHost):
    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21])
    async def test_outcomes_tell_the_truth(self, kernel: LinuxKernel, turns: int) -> None:
        steps: list[Step] = [BRIDGE, NETWORKS_TABLE, LED, VETH, GATE, replace(LED, item="tcp . 8081")]
        outcomes: list[Outcome] = []
        task = asyncio.ensure_future(kernel.ensure(steps, outcomes))
        for _ in range(turns):  # at which turn it is cancelled is the subject; so below
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        missing = {drift.step for drift in await kernel.drift(steps)}
        assert missing == set(steps[len(outcomes) :])

    async def test_cancelled_apply_leaves_nothing(self, kernel: LinuxKernel, around: LinuxSurroundings) -> None:
        before = around.snapshot()
        task = asyncio.ensure_future(Executor(kernel).apply(Plan((BRIDGE, NETWORKS_TABLE, LED, GATE, VETH))))
        for _ in range(6):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await kernel.settle()
        assert around.snapshot() == before

    async def test_one_cancelled_caller_does_not_harm_the_others(self, kernel: LinuxKernel) -> None:
        passages = [Passage(4, "nft", f"br{number}", ip_network(f"10.{number}.0.0/16")) for number in range(6)]
        await kernel.ensure((GATE,))
        tasks = [asyncio.ensure_future(kernel.ensure((step,))) for step in passages]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[3].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, BaseException) for result in results] == [True, False, False, True, False, False]
        assert await whats(kernel, GATE, *(passages[it] for it in (1, 2, 4, 5))) == []
