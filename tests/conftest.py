"""Settings shared by the unit tests."""

import gc
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import structlog
from clustered import Hosts, hosts_on
from dns_upstreams import Bench
from etcd_server import Member, running
from hypothesis import settings
from quiet import quiet_log

from netplug.docker import garbage

pytest.register_assert_rewrite("engine_host")
settings.register_profile("netplug", deadline=None)  # a busy machine is slow; the timeout ends what hangs
settings.load_profile("netplug")
# What a test logs is seen where it fails. By default it has times, and tracebacks with the source around each line,
# which take longer than what is tested.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.StackInfoRenderer(),
        structlog.dev.ConsoleRenderer(colors=False, pad_level=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


DEAREST = (
    "test_engine_crash.py",
    "test_cluster_crash.py",
    "test_docker_replay.py",
    "test_convergence_machine.py",
    "test_engine_machine.py",
    "contract/test_firewalld_zone.py",
    "test_hostile_records.py",
    "test_cluster_docker.py",
    "test_cluster_update.py",
    "contract/test_probe_drops_linux.py",
    "contract/test_probes_linux.py",
    "contract/test_tables_linux.py",
    "contract/test_watch.py",
    "test_cluster_faults.py",
    "test_cluster_questions.py",
    "test_cluster_poison.py",
    "test_cluster.py",
    "test_packaging.py",
    "test_metrics.py",
    "test_daemon.py",
    "test_cluster_restored.py",
    "test_cluster_underlay.py",
    "test_cluster_twins.py",
    "test_dns_fuzz.py",
    "test_daemon_refused.py",
    "test_cluster_large.py",
    "test_cluster_lists.py",
    "test_cluster_hosts.py",
    "test_cluster_ipam.py",
    "test_ipam_machine.py",
    "test_hostile_cni_socket.py",
)
"""Files that take long. The first to begin, where several run: one that begins last keeps all others waiting."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite golden files with what the code now says")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Look for no garbage meanwhile, and never among what was collected: nearly all of it stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)  # after they are shuffled
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have the dearest files first, then those with many tests, where workers take them in this order."""
    if not hasattr(config, "workerinput"):
        return
    here = Path(__file__).parent
    tests = Counter(item.path for item in items)
    ranks = {here / name: rank for rank, name in enumerate(DEAREST)}
    items.sort(key=lambda item: (ranks.get(item.path, len(ranks)), -tests[item.path]))


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """An etcd that the tests share."""
    with running(tmp_path_factory.mktemp("etcd")) as (member,):
        yield member


@pytest.fixture
def etcd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Member]:
    """An etcd: the one of all tests, and nothing is left in it; with mark `own_etcd` the test's own."""
    if request.node.get_closest_marker("own_etcd"):
        with running(tmp_path) as (member,):
            yield member
        return
    shared: Member = request.getfixturevalue("shared_etcd")
    yield shared
    shared.empty()


@pytest.fixture
def hosts(tmp_path: Path, etcd: Member) -> Iterator[Hosts]:
    """Hosts whose store is `etcd`."""
    with hosts_on(tmp_path, f"etcd://{etcd.host}") as it:
        yield it


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    """A forwarder of DNS questions, and the upstreams that it is given."""
    it = Bench()
    yield it
    it.forwarder.close()
    for one in it.upstreams:
        await one.close()


@pytest.fixture
def quiet() -> Iterator[None]:
    """Log nothing: what a test does a thousand times."""
    with quiet_log():
        yield


@pytest.fixture
def garbage_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect what Docker does not know without a wait."""
    for name in ("RETRY_S", "GRACE_S", "REPEATS_S"):
        monkeypatch.setattr(garbage, name, 0.0)


@pytest.fixture
def own_log() -> Iterator[None]:
    """Have the log as a process begins with, and after the test as it was."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()
