"""Settings shared by the unit tests."""

import logging
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite golden files with what the code now says")


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
