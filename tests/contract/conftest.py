"""Fixtures of tests with probes, and the lock of iptables."""

from collections.abc import AsyncIterator, Iterator

import pytest

pytest.register_assert_rewrite("linux_host", "probed_hosts")

from probed_hosts import Hosts  # noqa: E402

from netplug.kernel.probes.api import Prober  # noqa: E402
from netplug.kernel.probes.prober import WorkerProbes  # noqa: E402
from netplug.kernel.sandbox import netns  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _lock_of_iptables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have a lock of its own for each process that runs tests: iptables-legacy waits while another one holds it.

    One test holds it. The lock is a file, which network namespaces share (iptables(8), XTABLES_LOCKFILE).
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("iptables") / "lock"))
        yield


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
