"""Closes what a job has opened, all at once and without waiting for it.

The kernel waits for some 20 ms whenever a packet socket, or a table of nf_tables, goes away; several waits at the same
time are one.
"""

import threading
from typing import Protocol


class _Closeable(Protocol):
    def close(self) -> None: ...


class Opened:
    """What one job has opened."""

    def __init__(self) -> None:
        self._opened: list[_Closeable] = []

    def add(self, *opened: _Closeable) -> None:
        """Have these closed with the others."""
        self._opened += opened

    def close(self) -> None:
        """Close all, each in a thread of its own."""
        for it in self._opened:
            threading.Thread(target=it.close, daemon=True).start()
        self._opened.clear()
