"""Sockets that systemd keeps while the daemon restarts (FileDescriptorStoreMax=, sd_pid_notify_with_fds(3)).

The sockets that reserve published ports would end with the daemon, and another process could take a port before the
next life of the daemon reserves it. So each is given to systemd by a name. systemd passes it to the next start of the
service, also after a crash, and keeps it until the daemon wants it no more, or the service is stopped for good.

Process 1 may be busy. So notifications are sent when it has room for them, and a socket is kept some milliseconds after
it was bound. `settled` waits until process 1 has closed what it shall not keep, or others could not have the port yet.

Without systemd nothing is kept.
"""

import array
import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import Mapping
from itertools import count
from types import MappingProxyType

import structlog

from netplug.daemon.systemd import FIRST, KEPT, notify_address

log = structlog.get_logger(__name__)

PATIENCE_S = 1.0
"""Longest wait for process 1, which answers within milliseconds unless it is reloading its units."""


class DescriptorStore:
    """Keeps sockets for the next life of this process (`kept_sockets.Keeper`). Belongs to one event loop.

    `address`: where systemd expects notifications; empty: nothing is kept. `inherited`: what was kept, by name.
    """

    def __init__(self, address: str = "", inherited: Mapping[str, socket.socket] = MappingProxyType({})) -> None:
        self._address = address
        self._inherited = dict(inherited)
        self._kept = set(inherited)
        self._queue: dict[tuple[str, str], socket.socket | int | None] = {}
        """What is to be sent, in order: kind and name of the notification, and the descriptor that goes with it."""
        self._channel: socket.socket | None = None
        self._forgetting = False
        """Whether process 1 may still have something that it shall not keep."""
        self._refused = ""
        """Why nothing can be sent, which is said once."""
        self._numbers = count(1)

    @classmethod
    def of_service(cls, environment: Mapping[str, str]) -> "DescriptorStore":
        """Return that of this process, with the sockets that systemd has passed to it."""
        return cls(notify_address(environment), _passed(environment))

    # What was kept

    def take(self, name: str) -> socket.socket | None:
        """Return the socket of this name that the former life had; from now on it is the caller's."""
        return self._inherited.pop(name, None)

    def left(self) -> list[str]:
        """Return the names of the sockets that were not taken."""
        return list(self._inherited)

    def drop(self, name: str) -> None:
        """Close a socket that was not taken, and wait until process 1 has closed it too."""
        if name in self._inherited:
            self._drop(name)
            self._flush()

    def drop_left(self) -> None:
        """Close the sockets that were not taken: their ports are not published any more."""
        if self._inherited:
            log.info("ports.not_needed", ports=sorted(self._inherited))
        for name in self.left():
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._inherited.pop(name).close()
        self.forget(name)

    # What is kept

    def keep(self, name: str, sock: socket.socket) -> None:
        """Have a socket kept. It stays the caller's, who calls `forget` before it is closed for good."""
        if self._address and name not in self._kept:
            self._kept.add(name)
            self._put("keep", name, sock)

    def forget(self, name: str) -> None:
        """Have a socket kept no more."""
        if name not in self._kept:
            return
        self._kept.discard(name)
        if self._queue.pop(("keep", name), None) is None:  # else process 1 does not have it yet
            self._forgetting = True
            self._put("forget", name, None)

    async def settled(self) -> None:
        """Wait until process 1 has closed what it shall not keep."""
        if not self._forgetting:
            return
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        end = self._barrier()
        loop.add_reader(end, done.set)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await done.wait()
        except TimeoutError:
            log.warning("ports.not_released", reason="systemd does not answer")
        finally:
            loop.remove_reader(end)
            os.close(end)

    def close(self) -> None:
        """Send the rest, and close what was not taken. What is kept stays kept."""
        self._flush()
        self._give_up()
        for sock in self._inherited.values():
            sock.close()
        self._inherited.clear()

    # Notifications

    def _barrier(self) -> int:
        """Return a descriptor that becomes readable when process 1 has done all before (sd_notify_barrier(3))."""
        end, theirs = os.pipe()
        self._forgetting = False
        self._put("barrier", str(next(self._numbers)), theirs)
        return end

    def _flush(self) -> None:
        """Send everything and wait until it is done, as long as process 1 may be waited for."""
        if not (self._queue or self._forgetting):
            return
        end, deadline = self._barrier(), time.monotonic() + PATIENCE_S
        try:
            while self._queue and (left := deadline - time.monotonic()) > 0:
                _wait(self._opened().fileno(), select.POLLOUT, left)
                self._send()
            _wait(end, select.POLLIN, max(0.0, deadline - time.monotonic()))
        except OSError as exc:
            self._fail(exc)
        finally:
            os.close(end)

    def _put(self, kind: str, name: str, carried: socket.socket | int | None) -> None:
        first = not self._queue
        self._queue[kind, name] = carried
        try:
            if first:
                asyncio.get_running_loop().add_writer(self._opened(), self._send)
        except OSError as exc:
            self._fail(exc)

    def _opened(self) -> socket.socket:
        if self._channel is None:
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                channel.setblocking(False)
                channel.connect(self._address)  # so that poll(2) tells when its queue has room
            except BaseException:
                channel.close()
                raise
            self._channel = channel
        return self._channel

    def _send(self) -> None:
        """Send what can be sent without waiting."""
        channel = self._opened()
        try:
            while self._queue:
                (kind, name), carried = next(iter(self._queue.items()))
                _tell(channel, kind, name, carried)
                self._refused = ""
                del self._queue[kind, name]
        except BlockingIOError:
            return
        except OSError as exc:
            self._fail(exc)
            return
        asyncio.get_running_loop().remove_writer(channel)

    def _fail(self, error: OSError) -> None:
        if self._refused != (reason := error.strerror or str(error)):
            self._refused = reason
            log.warning("ports.not_kept", reason=reason)
        self._give_up()

    def _give_up(self) -> None:
        for (kind, name), carried in self._queue.items():
            if kind == "keep":
                self._kept.discard(name)
            if isinstance(carried, int):
                os.close(carried)
        self._queue.clear()
        self._forgetting = False
        if self._channel is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                asyncio.get_running_loop().remove_writer(self._channel)
            self._channel.close()
            self._channel = None


def _wait(descriptor: int, what: int, timeout_s: float) -> None:
    """Wait by poll(2): select(2) takes no descriptor above 1023, and each port needs two."""
    poll = select.poll()
    poll.register(descriptor, what)
    poll.poll(timeout_s * 1000)


def _tell(channel: socket.socket, kind: str, name: str, carried: socket.socket | int | None) -> None:
    if kind == "forget":
        channel.send(f"FDSTOREREMOVE=1\nFDNAME={name}".encode())
    elif isinstance(carried, int):
        _send_with(channel, "BARRIER=1", carried)
        os.close(carried)
    elif carried is not None and carried.fileno() >= 0:
        # FDPOLL=0: else systemd drops a socket that reports an error.
        _send_with(channel, f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", carried.fileno())


def _send_with(channel: socket.socket, text: str, descriptor: int) -> None:
    channel.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])


def _passed(environment: Mapping[str, str]) -> dict[str, socket.socket]:
    """Return the sockets that were kept, by name; those of units are for `inherited_sockets`."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return {}
    found: dict[str, socket.socket] = {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    for fd, name in zip(range(FIRST, FIRST + int(environment.get("LISTEN_FDS", "0"))), names, strict=False):
        if name.startswith(KEPT):
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
            if found.setdefault(name, sock) is not sock:
                sock.close()
    return found
