"""Settings shared by the unit tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from clustered import Hosts, hosts_on
from etcd_server import Member, running
from quiet import quiet_log

pytest.register_assert_rewrite("engine_host")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite golden files with what the code now says")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """An etcd that the tests of a module share."""
    with running(tmp_path_factory.mktemp("etcd")) as (member,):
        yield member


@pytest.fixture
def hosts(tmp_path: Path, etcd: Member) -> Iterator[Hosts]:
    """Hosts whose store is `etcd`; nothing of them is left in it."""
    with hosts_on(tmp_path, f"etcd://{etcd.host}") as it:
        yield it
    etcd.empty()


@pytest.fixture
def quiet() -> Iterator[None]:
    """Log nothing: what a test does a thousand times."""
    with quiet_log():
        yield
