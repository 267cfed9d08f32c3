"""Settings shared by the unit tests."""

from collections.abc import Iterator
from logging import CRITICAL

import pytest
import structlog

pytest.register_assert_rewrite("engine_host")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite golden files with what the code now says")


@pytest.fixture
def quiet() -> Iterator[None]:
    """Log nothing: what a test does a thousand times."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(CRITICAL))
    yield
    structlog.configure(**before)
