"""HTTP to the daemon over its unix socket, with a deadline, by the standard library alone."""

import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from netplug.cli import NO, UNREACHABLE, USAGE, CliError

if TYPE_CHECKING:
    from http.client import HTTPResponse

SOCKET = "netplug.sock"
DEADLINE_S = 60.0
"""Longer than any request takes on a busy host, including the repair of a thousand endpoints."""


@dataclass(frozen=True, slots=True)
class Client:
    """The daemon whose sockets are in `run_dir`."""

    run_dir: Path
    deadline_s: float = DEADLINE_S

    @property
    def path(self) -> Path:
        return self.run_dir / SOCKET

    def get(self, *path: str, **query: str) -> Any:
        """Return an object of the API; the parts of its path are quoted."""
        return self._call("GET", path, query=query)

    def post(self, *path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request and return the daemon's answer."""
        return self._call("POST", path, body={} if body is None else body)

    def patch(self, *path: str, body: dict[str, Any]) -> Any:
        """Ask the daemon to change an object, and return its answer."""
        return self._call("PATCH", path, body=body)

    def delete(self, *path: str) -> None:
        """Ask the daemon to delete an object."""
        self._call("DELETE", path)

    def lines(self, *path: str, **query: str) -> Iterator[str]:
        """Yield the lines of an answer that goes on until the daemon ends it."""
        with self._connected() as sock:
            response = self._respond(sock, "GET", _url(path, query), None)
            if response.status >= 400:
                self._answer(response)
            with self._reading():
                for line in response:
                    yield line.decode().rstrip("\r\n")

    def _call(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> Any:
        with self._connected() as sock:
            response = self._respond(sock, method, _url(path, query), None if body is None else json.dumps(body))
            return self._answer(response)

    def _answer(self, response: "HTTPResponse") -> Any:
        """Read an answer to its end.

        Raises:
            CliError: the daemon refuses, or it is none of its answers.
        """
        with self._reading():
            data = response.read()
        try:
            answer = json.loads(data) if data else None
        except ValueError:
            raise self._stranger() from None
        if response.status >= 400:
            raise _refusal(response.status, answer)
        return answer

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # With a timeout of Python's, connect() fails at once while the queue of the socket is full (unix(7), EAGAIN).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", *_parts(self.deadline_s)))
        with sock:
            try:
                sock.connect(str(self.path))
                sock.settimeout(self.deadline_s)
            except BlockingIOError:
                raise self._broken(TimeoutError()) from None
            except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
                raise CliError(
                    UNREACHABLE, f"no daemon answers at {self.path}", hint="start it with: netplug serve"
                ) from None
            except OSError as exc:
                raise self._broken(exc) from None
            self._check_owner(sock)
            yield sock

    def _check_owner(self, sock: socket.socket) -> None:
        """Refuse a process that is neither root's nor this user's: it could answer anything."""
        user = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if user in {0, os.geteuid()}:
            return
        from netplug.daemon.folders import trusted  # noqa: PLC0415 - hardly ever needed

        if user not in trusted():
            words = f"the process that answers at {self.path} belongs to user {user}, so it is not the netplug daemon"
            raise CliError(UNREACHABLE, words, hint="give the daemon's folder by --run-dir")

    def _stranger(self) -> CliError:
        return CliError(UNREACHABLE, f"the process that answers at {self.path} is not the netplug daemon")

    def _broken(self, exc: OSError) -> CliError:
        if isinstance(exc, PermissionError):
            words = f"no permission to connect to the daemon at {self.path}"
            return CliError(UNREACHABLE, words, hint="run as root, or as a member of socket_group")
        if isinstance(exc, TimeoutError):
            words = f"the daemon at {self.path} did not answer in {self.deadline_s:.0f} s"
            return CliError(UNREACHABLE, words, hint="systemctl status netplug shows whether it starts, or hangs")
        if "too long" in str(exc):  # struct sockaddr_un
            return CliError(USAGE, f"path {self.path} is too long for a socket", hint="use a shorter --run-dir")
        return CliError(UNREACHABLE, f"the connection to the daemon at {self.path} failed", hint=str(exc))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        import http.client  # noqa: PLC0415 - takes 10 ms, which nobody need wait for without a daemon

        try:
            yield
        except (ConnectionError, http.client.IncompleteRead):  # RemoteDisconnected is the former too
            words = f"the daemon at {self.path} ended before it had answered"
            raise CliError(UNREACHABLE, words, hint="see the log of netplug: journalctl -u netplug") from None
        except http.client.HTTPException:
            raise self._stranger() from None
        except OSError as exc:
            raise self._broken(exc) from None

    def _respond(self, sock: socket.socket, method: str, url: str, body: str | None) -> "HTTPResponse":
        with self._reading():
            import http.client  # noqa: PLC0415 - as above

            connection = http.client.HTTPConnection("netplug", timeout=self.deadline_s)
            connection.sock = sock
            headers = {} if body is None else {"Content-Type": "application/json"}
            # In one piece: a daemon that answers by the head alone closes before a body that comes later.
            parts: list[bytes] = []
            connection.send = parts.append  # type: ignore[method-assign, assignment]
            connection.request(method, url, body=body, headers=headers)
            sock.sendall(b"".join(parts))
            return connection.getresponse()


def _parts(seconds: float) -> tuple[int, int]:
    """Return a time as a struct timeval."""
    return int(seconds), int(seconds % 1 * 1e6)


def _url(path: tuple[str, ...], query: Mapping[str, str] | None) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in path) + (f"?{urlencode(query)}" if query else "")


def _refusal(status: int, answer: Any) -> CliError:
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return CliError(NO, f"the daemon refused with status {status}")
    code = UNREACHABLE if error.get("kind") == "unreachable" else NO
    return CliError(code, str(error.get("message", "")), hint=str(error.get("hint", "")))
