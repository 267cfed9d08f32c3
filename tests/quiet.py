"""Logging nothing for a while, however many want that and in whatever order they end."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL

import structlog


class _Quiet:
    """How many want it, and how the log was before the first."""

    def __init__(self) -> None:
        self.wanted = 0
        self.before = structlog.get_config()


_quiet = _Quiet()


@contextmanager
def quiet_log() -> Iterator[None]:
    """Log nothing until the last that wants it has ended; then as before the first."""
    if not _quiet.wanted:
        _quiet.before = structlog.get_config()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(CRITICAL))
    _quiet.wanted += 1
    try:
        yield
    finally:
        _quiet.wanted -= 1
        if not _quiet.wanted:
            structlog.configure(**_quiet.before)
