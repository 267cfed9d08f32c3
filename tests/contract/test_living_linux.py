"""How living objects follow their steps in the real kernel."""

import os

import pytest

pytest.register_assert_rewrite("kernel_suite", "tunnel_suite", "living_suite", "linux_host")

from kernel_suite import BRIDGE, IFB, VETH  # noqa: E402
from linux_host import LinuxHost, run  # noqa: E402
from living_suite import BUCKETS, LIMITED, LivingSuite  # noqa: E402

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


def _bucket(rate: int, burst: int) -> tuple[str, ...]:
    limit = rate // 8 // 40 + 65_536
    return "tbf", "rate", f"{rate}bit", "burst", str(burst), "limit", str(limit)
