"""The resolvers and the search list of the host: what its resolv.conf says now."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from netplug.dns.forward_rules import Server, resolv_conf, search_list

RESOLV_CONF = Path("/etc/resolv.conf")
CHECK_S = 1.0
"""Interval of checks for changes: one stat(2) each."""


class HostResolvers:
    """Follows a resolv.conf. A file that is missing, or cannot be read, names nothing.

    Args:
        conf: the file.
        use: called with resolvers and search list, by the first `read` and after each change.
        searched: whether the search list counts; else it is empty.

    Attributes:
        since: when they last changed (Unix time).
    """

    def __init__(
        self, conf: Path, use: Callable[[Sequence[Server], tuple[str, ...]], None], *, searched: bool = True
    ) -> None:
        self.since = 0.0
        self._conf, self._use, self._searched = conf, use, searched
        self._status: object = None
        self._content: object = None

    async def run(self) -> None:
        """Follow the file until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            self.read()

    def reset(self, *, searched: bool) -> None:
        """Have what the file says used anew, as after a change."""
        self._searched = searched
        self._status = self._content = None
        self.read()
        self.since = time.time()

    def read(self) -> None:
        """Read the file if it has changed."""
        text, changed = "", 0.0
        try:
            status = self._conf.stat()
            # A file that replaces it may have an old modification time.
            changed = max(status.st_mtime, status.st_ctime, self._conf.lstat().st_ctime)
            seen = (status.st_ino, status.st_mtime_ns, status.st_size, changed)
            if seen == self._status:
                return
            text = self._conf.read_text(errors="replace")
        except OSError:
            seen = (0, 0, 0, 0.0)
            if seen == self._status:
                return
        said = resolv_conf(text), search_list(text) if self._searched else ()
        self._status = seen
        if said == self._content:
            return
        self.since = changed if self._content is None else time.time()
        self._content = said
        self._use(*said)
