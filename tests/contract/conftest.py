"""Fixtures of tests with probes."""

from collections.abc import AsyncIterator, Iterator

import pytest

pytest.register_assert_rewrite("linux_host", "probed_hosts")

from probed_hosts import Hosts  # noqa: E402

from netplug.kernel.probes.api import Prober  # noqa: E402
from netplug.kernel.probes.prober import WorkerProbes  # noqa: E402
from netplug.kernel.sandbox import netns  # noqa: E402


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with netns.temporary_netns():
        found = Hosts()
        yield found
        found.close()


@pytest.fixture
async def prober(hosts: Hosts) -> AsyncIterator[Prober]:
    async with WorkerProbes().start() as found:
        yield found
    assert "np-probe" not in hosts.tables()
