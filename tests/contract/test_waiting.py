"""What happens while somebody else holds the kernel's rtnl mutex: the loop goes on, and nobody waits for ever."""

import asyncio
import os
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

pytest.register_assert_rewrite("kernel_suite", "linux_host", "rtnl_held", "tunnel_suite")

from kernel_suite import (  # noqa: E402
    ANTISPOOF_TABLE,
    BRIDGE,
    GATEWAY,
    HOST_MACVLAN,
    IFB,
    MACVLAN,
    NETWORKS_TABLE,
    VETH,
    gone,
    whats,
)
from linux_host import LinuxHost, LinuxSurroundings, run  # noqa: E402
from rtnl_held import AT_MOST_S, Held, rtnl_held  # noqa: E402
from tunnel_suite import VXLAN, WAYS  # noqa: E402

from netplug.drivers import antispoof, tables, tunnel_tables  # noqa: E402
from netplug.drivers.plan import Plan  # noqa: E402
from netplug.drivers.steps import (  # noqa: E402
    Address,
    Announce,
    Element,
    Flows,
    Hairpin,
    Loopback,
    Proto,
    Route,
    Shape,
    Step,
    Sysctl,
)
from netplug.drivers.tables import NETWORKS  # noqa: E402
from netplug.drivers.tunnel import Fdb, Neighbour  # noqa: E402
from netplug.errors import NetplugError  # noqa: E402
from netplug.kernel.api import Outcome, StepError  # noqa: E402
from netplug.kernel.executor import Executor  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402
from netplug.kernel.netlink import worker  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

TICK_S, TICKS = 0.005, 40
PLACES = (BRIDGE, VETH, GATEWAY, VXLAN, IFB, NETWORKS_TABLE, ANTISPOOF_TABLE, *WAYS)
MAC, ADDRESS = "02:00:00:00:07:07", ip_address("10.9.0.7")


async def through_it(work: Awaitable[object]) -> object:
    """Await something while the mutex is held and the loop ticks; its result comes once the mutex is free."""
    with rtnl_held() as held:
        task = asyncio.ensure_future(work)
        for _ in range(TICKS):
            await asyncio.sleep(TICK_S)
        assert held, "the loop stood still"
    return await task


async def abandoned(kernel: LinuxKernel, work: Awaitable[object]) -> None:
    """Have a request begin, wait in the kernel, and take too long. The mutex is held."""
    task = asyncio.ensure_future(work)
    async with asyncio.timeout(AT_MOST_S):
        while not waits(kernel):  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(TICK_S)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "DEADLINE_S", 0)
        kernel._requests._worker._check_deadlines()
    await task


@contextmanager
def held_for_too_long() -> Iterator[Held]:
    with rtnl_held() as held, pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "DEADLINE_S", 0.1)
        yield held


class TestLoop(LinuxHost):
    @pytest.mark.parametrize(
        "step",
        [
            replace(BRIDGE, name="np-other", mac=MAC),
            replace(VETH, name="nphother", peer="npsother", mac=MAC, pinned=True),
            replace(MACVLAN, name="npsother", mac=MAC),
            replace(HOST_MACVLAN, name="npmother", mac=MAC),
            replace(IFB, name="npiother", mac=MAC),
            replace(VXLAN, name="npvother", vni=VXLAN.vni + 1, mac=MAC),
            Hairpin(VETH.name),
            Address(BRIDGE.name, ip_interface("10.9.0.7/24")),
            Route(ip_network("10.7.0.0/16"), BRIDGE.name),
            Shape(VETH.name, IFB.name, (8_000_000, 9_000_000), (65_536, 70_000)),
            Announce(BRIDGE.name, MAC, ADDRESS),
            Fdb(VXLAN.name, MAC, ip_address("10.5.0.7")),
            Neighbour(VXLAN.name, ADDRESS, MAC),
            *tunnel_tables.shortcut(VETH.name, VXLAN.name, VETH.peer_mac, (ADDRESS,)),
            tunnel_tables.remote(VXLAN.name, MAC),
            *antispoof.own(VETH.name, VETH.peer_mac, (ADDRESS,)),
            Element(NETWORKS, "home4", "10.9.0.0/24 . np-test"),
            replace(NETWORKS_TABLE, name="netplug-host", text=tables.text("host_mode")),
            Flows(Proto.UDP, 8080, ADDRESS),
            Sysctl("net/ipv4/ip_forward", "1", "0"),
        ],
        ids=lambda step: step.key,
    )
    async def test_goes_on_while_steps_are_done(self, kernel: LinuxKernel, step: Step) -> None:
        await kernel.ensure(PLACES)
        [outcome] = await through_it(kernel.ensure((step,)))  # type: ignore[misc]
        assert outcome in {Outcome.CREATED, Outcome.EQUAL}
        assert await whats(kernel, step) == []
        await through_it(kernel.remove((step,)))
        await gone(kernel, step)

    async def test_goes_on_while_a_sandbox_is_furnished(self, kernel: LinuxKernel, around: LinuxSurroundings) -> None:
        netns = around.sandbox()

        steps = (
            replace(VETH, name="nphother", peer="eth0", netns=netns),
            Address("eth0", ip_interface("10.9.0.7/24"), netns),
            Route(ip_network("0.0.0.0/0"), "eth0", GATEWAY.address.ip, netns),
            Loopback(netns),
            replace(MACVLAN, name="npsother", ifname="eth1", netns=netns),
        )
        await kernel.ensure(PLACES)
        found = await through_it(kernel.ensure(steps))
        assert found == [Outcome.CREATED] * 3 + [Outcome.ADJUSTED, Outcome.CREATED]
        await through_it(kernel.remove(steps[::-1]))

    async def test_goes_on_while_it_is_looked_at(self, kernel: LinuxKernel) -> None:
        await kernel.ensure(PLACES)
        await through_it(kernel.compare(PLACES))
        assert await through_it(kernel.probe.addresses_in_use(BRIDGE.name, (ADDRESS,))) == {}

    async def test_goes_on_while_another_kernel_opens(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE, VETH))
        run("ip", "link", "set", VETH.name, "group", str(kernel._reaper.group))

        async def opened() -> None:
            async with await LinuxKernel.open():
                pass

        await through_it(opened())


def waits(kernel: LinuxKernel) -> bool:
    """Whether the thread for such requests waits inside the kernel (proc(5), state D)."""
    thread = kernel._requests._worker._thread
    if thread is None or thread.native_id is None:
        return False
    return Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()[0] == "D"


class TestDeadline(LinuxHost):
    async def test_step_that_the_kernel_does_not_end_is_an_error_and_is_taken_back(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        before = around.snapshot()
        with held_for_too_long() as held:
            with pytest.raises(StepError, match="the kernel does not answer for 'link/np-test'") as caught:
                await Executor(kernel).apply(Plan((BRIDGE, GATEWAY)))
            assert (caught.value.kind, caught.value.step) == ("unavailable", BRIDGE)
            with pytest.raises(StepError, match="'link/npitest'"):
                await kernel.ensure((IFB,))
            assert held
        # In its turn, after what is late.
        assert await kernel.ensure((IFB, BRIDGE)) == [Outcome.CREATED] * 2
        await gone(kernel, IFB, BRIDGE)
        assert around.snapshot() == before

    async def test_what_was_there_stays(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE,))
        with held_for_too_long(), pytest.raises(StepError, match="does not answer"):
            await kernel.ensure((BRIDGE,))
        assert await kernel.ensure((GATEWAY,)) == [Outcome.CREATED]

    async def test_link_in_a_sandbox_is_taken_back(self, kernel: LinuxKernel, around: LinuxSurroundings) -> None:
        await kernel.ensure((BRIDGE,))
        step = replace(MACVLAN, ifname="eth0", netns=around.sandbox())
        with held_for_too_long(), pytest.raises(StepError, match="does not answer"):
            await kernel.ensure((step,))
        assert await kernel.ensure((step,)) == [Outcome.CREATED]

    async def test_removal_that_was_begun_is_ended(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE, GATEWAY))
        with rtnl_held() as held:
            with pytest.raises(ExceptionGroup) as caught:
                await abandoned(kernel, kernel.remove((GATEWAY, BRIDGE)))
            assert [str(error) for error in caught.value.exceptions] == [
                f"the kernel does not answer for {step.key!r}" for step in (GATEWAY, BRIDGE)
            ]
            # In its turn, after what is late.
            looked = asyncio.ensure_future(whats(kernel, GATEWAY, BRIDGE))
            for _ in range(TICKS):
                await asyncio.sleep(TICK_S)
            assert held
            assert not looked.done()
        assert await looked == ["missing"]

    async def test_removal_in_a_sandbox_that_was_begun_is_ended(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        step = replace(MACVLAN, ifname="eth0", netns=around.sandbox())
        await kernel.ensure((BRIDGE, step))
        with rtnl_held(), pytest.raises(ExceptionGroup):
            await abandoned(kernel, kernel.remove((step,)))
        assert await whats(kernel, step) == ["missing"]

    async def test_nobody_looks_while_something_late_may_still_change_it(
        self, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with rtnl_held() as held, monkeypatch.context() as patch:
            with pytest.raises(StepError):
                await abandoned(kernel, kernel.ensure((BRIDGE,)))
            patch.setattr(worker, "DEADLINE_S", 0.1)
            with pytest.raises(NetplugError, match="the kernel does not answer: an earlier request still runs"):
                await kernel.compare((BRIDGE,))
            assert held
        assert await whats(kernel, BRIDGE) == ["missing"]

    async def test_cancelled_step_is_ended_first(self, kernel: LinuxKernel) -> None:
        found: list[Outcome] = []
        with rtnl_held() as held:
            task = asyncio.ensure_future(kernel.ensure((BRIDGE, GATEWAY), found))
            async with asyncio.timeout(AT_MOST_S):
                while not waits(kernel):  # noqa: ASYNC110 - the kernel tells nobody
                    await asyncio.sleep(TICK_S)
            task.cancel()
            await asyncio.sleep(TICK_S)
            assert not task.done()
            assert held
        with pytest.raises(asyncio.CancelledError):
            await task
        assert found == [Outcome.CREATED]
