"""How living objects follow their steps in the real kernel."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

pytest.register_assert_rewrite("kernel_suite", "tunnel_suite", "living_suite", "linux_host")

from kernel_suite import BRIDGE, IFB, VETH  # noqa: E402
from linux_host import LinuxHost, LinuxSurroundings, run  # noqa: E402
from living_suite import ADJUSTED, BUCKETS, LIMITED, LivingSuite  # noqa: E402
from tunnel_suite import VXLAN  # noqa: E402

from netplug.kernel.linux import LinuxKernel  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


class TestLinuxLiving(LinuxHost, LivingSuite):
    async def test_bucket_that_stays_is_not_touched(self, kernel: LinuxKernel) -> None:
        """A deleted bucket would drop what is queued."""
        await kernel.ensure((BRIDGE, VETH, IFB, LIMITED))
        # Of another burst in the kernel alone, which only a new bucket would mend.
        run("tc", "qdisc", "change", "dev", VETH.name, "root", "handle", "1:", *_bucket(8_000_000, 99_000))
        before = run("tc", "qdisc", "show", "dev", VETH.name)
        run("tc", "qdisc", "del", "dev", IFB.name, "root")
        await kernel.ensure((LIMITED,))
        assert run("tc", "qdisc", "show", "dev", IFB.name).startswith("qdisc tbf 1: root")
        assert run("tc", "qdisc", "show", "dev", VETH.name) == before
        await kernel.ensure((BUCKETS["rates"],))
        assert "rate 80Mbit" in run("tc", "qdisc", "show", "dev", VETH.name)

    @pytest.mark.parametrize("tunable", [False, True])
    async def test_links_that_get_ipv6_by_their_mtu_keep_their_settings(
        self, kernel: LinuxKernel, around: LinuxSurroundings, *, tunable: bool
    ) -> None:
        """The kernel takes IPv6 off a link below 1280 bytes, and gives it back with the settings of a new link."""
        netns = around.sandbox()
        veth = replace(VETH, netns=netns, peer="eth0", tunable=tunable)
        steps = (BRIDGE, VXLAN, veth)
        await kernel.ensure(steps)
        before = _settings(netns)
        assert "net.ipv6.conf.eth0.accept_ra = 0" in before
        small = tuple(replace(step, mtu=1200) for step in steps)  # type: ignore[type-var]  # all have an mtu
        await kernel.ensure(small)
        assert await kernel.drift(small) == []
        assert await kernel.ensure(steps) == [ADJUSTED] * 3
        assert _settings(netns) == before
        assert await kernel.drift(steps) == []


def _settings(sandbox: str) -> set[str]:
    names = "accept_ra|autoconf|accept_redirects|disable_ipv6|arp_ignore"
    inside = run("ip", "netns", "exec", Path(sandbox).name, "sysctl", "-ar", rf"^net.*eth0\.({names})$")
    return set((run("sysctl", "-ar", rf"^net.*\.np.*\.({names})$") + inside).splitlines())


def _bucket(rate: int, burst: int) -> tuple[str, ...]:
    limit = rate // 8 // 40 + 65_536
    return "tbf", "rate", f"{rate}bit", "burst", str(burst), "limit", str(limit)
