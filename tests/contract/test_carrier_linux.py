"""A container counts as connected once frames come to it, also where others keep the kernel busy."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

pytest.register_assert_rewrite("kernel_suite", "linux_host")

from kernel_suite import BRIDGE, VETH  # noqa: E402
from linux_host import LinuxHost, LinuxSurroundings, run  # noqa: E402

from netplug.kernel.linux import LinuxKernel  # noqa: E402
from netplug.kernel.netlink import rtnl  # noqa: E402
from netplug.kernel.netlink.connection import Netlink  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

TIMES = 20
_BUSY = "while :; do ip link add d0 type dummy; ip link del d0; done"


@contextmanager
def busy_rtnl() -> Iterator[None]:
    """Others add and delete links all the time, in namespaces of their own: the mutex of them all is theirs mostly."""
    command = ["unshare", "--net", "--kill-child", "--fork", "sh", "-c", _BUSY]
    others = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        yield
    finally:
        for it in others:
            it.kill()
            it.wait()


def not_passing(*names: str) -> list[str]:
    """Return those that do not pass frames yet. A list of all links changes none of them; a question for one does."""
    with closing(Netlink.open()) as nl:
        found = {it.name: it for it in rtnl.links(nl) if it.name in names}
    assert found.keys() == {*names}
    return [name for name, it in found.items() if it.flags & rtnl.CARRIES != rtnl.CARRIES]


class TestCarrier(LinuxHost):
    async def test_port_forwards_and_bridge_runs_when_a_pair_is_made(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        veth = replace(VETH, netns=around.sandbox(), peer="eth0")
        late = []
        with busy_rtnl():
            for _ in range(TIMES):
                await kernel.ensure((BRIDGE, veth))
                late += not_passing(BRIDGE.name, veth.name)
                await kernel.remove((BRIDGE, veth))
                await kernel.settle()
        assert late == []
        assert veth.name not in run("ip", "link")
