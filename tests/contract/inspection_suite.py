"""What every kernel must tell of its host."""

from ipaddress import ip_address

from kernel_suite import gone

from netplug.drivers.steps import HostPort, Proto, Sysctl
from netplug.kernel.api import HostKernel
from netplug.kernel.host.api import Offloads


class InspectionSuite:
    """What there is, and what there is not."""

    async def test_what_is_not_there_is_empty(self, kernel: HostKernel) -> None:
        inspection = kernel.inspection
        assert inspection.release()
        assert inspection.sysctl("net/ipv4/no_such_thing") == ""
        assert inspection.holders(Proto.UDP, 9) == ()
        assert inspection.programs({"no-such-program"}) == ()
        assert inspection.offloads("no-such-link") == Offloads()
        assert inspection.refusing_routes() == ()
        assert not await inspection.managed({"no-such-link"})
        assert 0 < inspection.descriptors().open < inspection.descriptors().limit

    async def test_sysctl_is_as_a_step_wrote_it(self, kernel: HostKernel) -> None:
        step = Sysctl("net/ipv6/conf/all/forwarding", "1")
        await kernel.ensure((step,))
        assert kernel.inspection.sysctl(step.name) == "1"

    async def test_holder_of_a_port_is_found(self, kernel: HostKernel) -> None:
        step = HostPort(Proto.TCP, ip_address("127.0.0.1"), 9053)
        await kernel.ensure((step,))
        (found,) = kernel.inspection.holders(Proto.TCP, 9053)
        assert (found.proto, found.address, found.port) == (Proto.TCP, "127.0.0.1", 9053)
        assert found.process.startswith("process ")
        assert kernel.inspection.holders(Proto.UDP, 9053) == ()
        await gone(kernel, step)
