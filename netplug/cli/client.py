"""HTTP to the daemon over its unix socket, with a deadline, by the standard library alone."""

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from netplug.cli import NO, UNREACHABLE, USAGE, CliError

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

    def _call(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> Any:
        url = "/v1/" + "/".join(quote(part, safe="") for part in path) + (f"?{urlencode(query)}" if query else "")
        status, data = self._exchange(method, url, None if body is None else json.dumps(body))
        try:
            answer = json.loads(data) if data else None
        except ValueError:
            raise CliError(UNREACHABLE, f"the process that answers at {self.path} is not the netplug daemon") from None
        if status >= 400:
            raise _refusal(status, answer)
        return answer

    def _exchange(self, method: str, url: str, body: str | None) -> tuple[int, bytes]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self.deadline_s)
        try:
            sock.connect(str(self.path))
            return self._speak(sock, method, url, body)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise CliError(
                UNREACHABLE, f"no daemon answers at {self.path}", hint="start it with: netplug serve"
            ) from None
        except PermissionError:
            raise CliError(
                UNREACHABLE, f"no permission to connect to the daemon at {self.path}", hint="run as root"
            ) from None
        except TimeoutError:
            raise CliError(
                UNREACHABLE, f"the daemon at {self.path} did not answer in {self.deadline_s:.0f} s"
            ) from None
        except OSError as exc:
            if "too long" in str(exc):  # struct sockaddr_un
                raise CliError(
                    USAGE, f"path {self.path} is too long for a socket", hint="use a shorter --run-dir"
                ) from None
            raise CliError(UNREACHABLE, f"the connection to the daemon at {self.path} failed", hint=str(exc)) from None
        finally:
            sock.close()

    def _speak(self, sock: socket.socket, method: str, url: str, body: str | None) -> tuple[int, bytes]:
        import http.client  # noqa: PLC0415 - takes 10 ms, which nobody need wait for without a daemon

        connection = http.client.HTTPConnection("netplug", timeout=self.deadline_s)
        connection.sock = sock
        try:
            connection.request(
                method, url, body=body, headers={} if body is None else {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as exc:
            raise CliError(
                UNREACHABLE, f"the daemon at {self.path} closed the connection", hint=type(exc).__name__
            ) from None
        finally:
            connection.close()


def _refusal(status: int, answer: Any) -> CliError:
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return CliError(NO, f"the daemon refused with status {status}")
    code = UNREACHABLE if error.get("kind") == "unreachable" else NO
    return CliError(code, str(error.get("message", "")), hint=str(error.get("hint", "")))
