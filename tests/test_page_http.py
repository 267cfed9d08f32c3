"""The listener of `--http`: what it gives, to whom, and that no one disturbs the daemon by it."""

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from living import DEADLINE_S, Living, living, until

from netplug.errors import NetplugError
from netplug.frontends import tcp
from netplug.insight.http import LIMITS
from netplug.insight.http_access import TOKEN_FILE, loopback_name, token_in


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Page:
    def __init__(self, daemon: Living, port: int) -> None:
        self.daemon = daemon
        self.port = port
        until(self.open, "the page listens")

    def open(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def ask(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)) as connection:
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()

    def status(self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> int:
        return self.ask(path, method=method, headers=headers)[0]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    port = free_port()
    with living(tmp_path, http=f"127.0.0.1:{port}") as daemon:
        yield Page(daemon, port)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Page]:
    """Listens on all addresses, so a token is needed."""
    port = free_port()
    with living(tmp_path, http=f"0.0.0.0:{port}") as daemon:
        yield Page(daemon, port)


def token_of(page: Page) -> str:
    return (page.daemon.settings.state_dir / TOKEN_FILE).read_text().strip()


def test_it_serves_the_page_and_the_rest_api(page: Page) -> None:
    page.daemon.client.post("networks", body={"name": "blue"})
    status, headers, body = page.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"netplug" in body
    status, _, body = page.ask("/v1/networks")
    assert status == 200
    assert [one["name"] for one in json.loads(body)["networks"]] == ["blue"]


def test_all_answers_tell_the_browser_to_trust_nothing_else(page: Page) -> None:
    for path in ("/", "/v1/version", "/nothing", "/v1/networks?x=1"):
        _, headers, _ = page.ask(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "get"])
def test_no_method_but_get_is_answered(page: Page, method: str) -> None:
    made = page.daemon.client.post("networks", body={"name": "blue"})
    for path in ("/", "/v1/networks", "/v1/networks/blue", "/v1/repair", "/metrics"):
        assert page.status(path, method=method) == 405
    assert page.daemon.client.get("networks")["networks"] == [made]


def test_only_listed_paths_reach_the_api(page: Page) -> None:
    page.daemon.client.post("networks", body={"name": "blue"})
    paths = (
        "/v1/networks/blue",
        "/v1/firewall",
        "/openapi.json",
        "/v1/../v1/firewall",
        "//v1/version",
        "/v1/%66irewall",
    )
    for path in (*paths, "/page/../http.py", "/page/%2e%2e/http.py", "/page/"):
        assert page.status(path) == 404, path
    listed = frozenset().union(*LIMITS)
    assert not listed & {"/v1/repair", "/v1/attach", "/v1/capture", "/v1/networks/prune"}
    for path in listed - {"/v1/events/stream", "/v1/trace", "/v1/hosts"}:  # they need more than a path
        assert page.status(path) == 200, path


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1:9820", True),
        ("localhost", True),
        ("LOCALHOST.:1", True),
        ("[::1]:9820", True),
        ("127.8.8.8", True),
        ("", False),
        ("evil.example:9820", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("10.0.0.1:9820", False),
        ("0.0.0.0", False),
        ("127.0.0.1:9820@evil.example", False),
        ("[::1", False),
        ("2130706433", False),
    ],
)
def test_on_loopback_the_host_must_be_named_as_such(host: str, loopback: bool) -> None:
    assert loopback_name(host) is loopback


def test_a_name_that_points_here_is_refused(page: Page) -> None:
    for path in ("/", "/v1/networks", "/metrics"):
        assert page.status(path, headers={"Host": f"evil.example:{page.port}"}) == 403
    assert page.status("/", headers={"Host": f"localhost:{page.port}"}) == 200


def test_requests_of_other_sites_are_refused(page: Page) -> None:
    other = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    frame = {**link, "Sec-Fetch-Dest": "iframe"}
    assert [page.status("/v1/version", headers=one) for one in (other, link, frame)] == [403, 403, 403]
    assert [page.status("/", headers=one) for one in (other, link, frame)] == [403, 200, 403]
    assert page.status("/v1/version", headers={"Origin": "http://evil.example"}) == 403
    assert page.status("/v1/version", headers={"Origin": f"http://127.0.0.1:{page.port}"}) == 200
    assert page.status("/v1/version", headers={"Sec-Fetch-Site": "same-origin"}) == 200


def test_beyond_loopback_a_token_is_needed(guarded: Page) -> None:
    token = token_of(guarded)
    for path in ("/", "/v1/networks", "/metrics", "/nothing"):
        status, headers, body = guarded.ask(path)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert token.encode() not in body
    for wrong in ("", token[:-1], token + "x", "x" * 43, "\xff"):
        assert guarded.status("/", headers={"Authorization": f"Bearer {wrong}"}) == 401
        assert guarded.status("/", headers={"Cookie": f"netplug-{guarded.port}={wrong}"}) == 401
    assert guarded.status(f"/?token={token[:-1]}") == 401
    assert guarded.status("/v1/version", headers={"Authorization": f"Bearer {token}"}) == 200


def test_the_token_in_the_query_becomes_a_cookie_once(guarded: Page) -> None:
    status, headers, _ = guarded.ask(f"/?token={token_of(guarded)}")
    assert (status, headers["location"]) == (303, "/")
    cookie, *rules = headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict"} <= set(rules)
    assert guarded.status("/", headers={"Cookie": f'other="{{a}}"; {cookie}'}) == 200
    assert guarded.status(f"/v1/version?token={token_of(guarded)}") == 401  # it would stay in logs and histories


def test_the_token_is_the_owners_alone_and_stays(tmp_path: Path) -> None:
    token = token_in(tmp_path)
    path = tmp_path / TOKEN_FILE
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert token_in(tmp_path) == token
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("secret")
    with pytest.raises(NetplugError, match="has no token"):
        token_in(tmp_path)
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(NetplugError, match="cannot be read"):
        token_in(tmp_path)


def test_on_loopback_there_is_no_token(page: Page) -> None:
    assert not (page.daemon.settings.state_dir / TOKEN_FILE).exists()


def test_a_port_in_use_keeps_the_daemon_from_nothing(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with living(tmp_path, http=f"127.0.0.1:{port}") as daemon:
            daemon.client.post("networks", body={"name": "blue"})
            until(lambda: _differences(daemon), "diff tells of it")
            (words,) = _differences(daemon)
            assert words.startswith(f"fails: cannot listen on 127.0.0.1:{port}: address already in use")
            assert f"ss -ltnp 'sport = :{port}'" in words
            other.close()
            Page(daemon, port)
            until(lambda: not _differences(daemon), "it has recovered")


def _differences(daemon: Living) -> list[str]:
    return [one["what"] for one in daemon.client.get("diff")["differences"]]


def test_slow_and_broken_connections_are_closed(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "PATIENCE_S", 0.2)
    begins = (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"\x16\x03\x01\x02\x00" + b"\xff" * 500)
    connections = [socket.create_connection(("127.0.0.1", page.port), DEADLINE_S) for _ in begins]
    for connection, begin in zip(connections, begins, strict=True):
        connection.sendall(begin)
    for connection in connections:
        with connection:
            try:
                while connection.recv(65536):
                    pass
            except ConnectionResetError:
                pass
    assert page.daemon.client.get("version")


def test_who_does_not_read_the_answers_is_cut_off(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "PATIENCE_S", 0.2)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(DEADLINE_S)
        sock.connect(("127.0.0.1", page.port))
        request = f"GET /page/topology.js HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n\r\n".encode()
        with pytest.raises(ConnectionError):  # no timeout
            _flood(sock, request * 100)
        assert page.daemon.client.get("version")


def _flood(sock: socket.socket, requests: bytes) -> None:
    while True:
        sock.sendall(requests)


def test_a_stream_is_ended_by_the_stop_of_the_daemon(page: Page) -> None:
    with socket.create_connection(("127.0.0.1", page.port), DEADLINE_S) as sock:
        sock.sendall(f"GET /v1/events/stream HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n\r\n".encode())
        assert b"text/event-stream" in sock.recv(65536)
        began = time.monotonic()
        page.daemon.stop()
        assert time.monotonic() - began < 5
        while sock.recv(65536):
            pass


def test_no_more_requests_at_a_time_than_the_host_can_bear(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = next(paths for paths in LIMITS if "/v1/diff" in paths)
    monkeypatch.setitem(LIMITS, kind, 0)
    status, headers, _ = page.ask("/v1/diff")
    assert (status, headers["retry-after"]) == (503, "1")
    assert page.status("/v1/version") == 200


def test_a_daemon_without_page_loads_nothing_of_it(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from living import living
with living(Path({str(tmp_path)!r})) as daemon:
    daemon.client.get("graph")
print([it for it in sys.modules if it in {{"netplug.insight.http", "netplug.frontends.tcp", "netplug.daemon.page"}}])
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_connections_beyond_the_limit_take_the_place_of_idle_ones(page: Page) -> None:
    many = [socket.create_connection(("127.0.0.1", page.port), DEADLINE_S) for _ in range(2 * tcp.CONNECTIONS)]
    try:
        for _ in range(3):
            assert page.status("/") == 200
        for closed in many[: tcp.CONNECTIONS]:
            with suppress(ConnectionResetError):
                assert closed.recv(1) == b""
        assert page.daemon.client.get("version")
    finally:
        for one in many:
            one.close()
