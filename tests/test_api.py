"""The REST API: statuses by kind, one shape for errors, bad bodies named, nothing changed by a refusal."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from living import Living, living

from netplug.frontends.http import MAX_BODY


class Http:
    """Speaks with a socket as a client that knows nothing of ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(
        self, method: str, url: str, body: Any = None, *, raw: bytes | None = None, kind: str = ""
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("x", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(str(self._path))
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        try:
            with suppress(BrokenPipeError):  # it does not read what is too large, but answers
                connection.request(method, url, body=data, headers={"Content-Type": kind} if kind else {})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        return response.status, json.loads(text) if text else None

    def refused(self, status: int, *args: Any, **kwargs: Any) -> str:
        """Expect an error of the one shape and return its message."""
        found, body = self(*args, **kwargs)
        assert found == status, body
        assert list(body) == ["error"]
        assert list(body["error"]) == ["kind", "message", "hint"]
        message = body["error"]["message"]
        assert isinstance(message, str)
        assert "\n" not in message
        return message


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    with living(tmp_path_factory.mktemp("api")) as daemon:
        daemon.kernel.vanish("/run/netns/no-such-namespace")
        yield daemon


@pytest.fixture
def ask(daemon: Living) -> Iterator[Http]:
    ask = Http(daemon.settings.api_socket)
    before = daemon.kernel.dump()
    yield ask
    for network in ask("GET", "/v1/networks")[1]["networks"]:
        assert ask("DELETE", f"/v1/networks/{network['id']}")[0] == 204
    assert ask("GET", "/v1/ipam")[1] == {"pools": []}
    assert _lasting(daemon.kernel.dump()) == _lasting(before)


def _lasting(dump: str) -> list[str]:
    """Settings below /proc/sys stay, by design."""
    return [line for line in dump.splitlines() if not line.startswith("sysctl ")]


BLUE = {"name": "blue", "subnets": [{"subnet": "10.1.0.0/24"}]}


def test_a_network_is_made_found_and_removed(ask: Http) -> None:
    status, made = ask("POST", "/v1/networks", BLUE)
    assert status == 201
    assert made["subnets"] == [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.1"}]
    origin = {"options": {}, "internal": False}
    for ref in ("blue", made["id"], made["id"][:7]):
        assert ask("GET", f"/v1/networks/{ref}") == (200, {**made, "as_created": origin, "endpoints": [], "note": ""})
    assert ask("GET", "/v1/networks") == (200, {"networks": [made], "note": ""})
    assert ask("DELETE", "/v1/networks/blue") == (204, None)
    assert "blue" in ask.refused(404, "GET", "/v1/networks/blue")


def test_a_network_without_subnets_gets_one(ask: Http) -> None:
    assert ask("POST", "/v1/networks", {"name": "auto"})[1]["subnets"][0]["subnet"] == "10.208.0.0/24"
    both = ask("POST", "/v1/networks", {"name": "auto6", "ipv6": True})[1]["subnets"]
    assert [subnet["subnet"][:2] for subnet in both] == ["10", "fd"]


def test_version_tells_of_the_process(ask: Http) -> None:
    status, body = ask("GET", "/v1/version")
    assert (status, list(body), body["host"]) == (200, ["version", "host", "pid"], "host-a")


def test_statuses_follow_the_kind(ask: Http) -> None:
    ask("POST", "/v1/networks", BLUE)
    assert "exists already" in ask.refused(409, "POST", "/v1/networks", BLUE)
    assert "unknown option" in ask.refused(400, "POST", "/v1/networks", {"name": "red", "options": {"x": "y"}})
    assert "'red'" in ask.refused(404, "DELETE", "/v1/networks/red")
    assert "'red'" in ask.refused(404, "GET", "/v1/endpoints?network=red")
    body = {"network": "blue", "netns": "no-such-namespace"}
    assert "no-such-namespace" in ask.refused(404, "POST", "/v1/attach", body)
    assert "not attached" in ask.refused(404, "POST", "/v1/detach", body)


def test_network_is_updated_and_bad_updates_change_nothing(ask: Http) -> None:
    made = ask("POST", "/v1/networks", BLUE)[1]
    before = ask("GET", "/v1/networks/blue")
    for status, body, words in (
        (400, {"options": {"x": "y"}}, "unknown option 'x'"),
        (400, {"options": {"rate": "1mbit", "mode": "none"}}, "cannot change"),
        (400, {"options": {"rate": 7}}, "options.rate"),
        (400, {"internal": "perhaps"}, "internal"),
        (400, {"colour": "red"}, "colour"),
        (400, {"labels": {"a=b": ""}}, "'a=b' is not the key of a label"),
        (400, {"labels": {"a": "1", "b": "2"}, "remove_labels": ["b"]}, "label 'b' cannot be both set and removed"),
        (400, {"remove_subnets": ["house"]}, "house"),
        (404, {"remove_subnets": ["10.9.0.0/24"]}, "has no subnet"),
        (409, {"add_subnets": [{"subnet": "10.1.0.0/16"}]}, "overlaps"),
    ):
        assert words in ask.refused(status, "PATCH", "/v1/networks/blue", body)
    assert "'red'" in ask.refused(404, "PATCH", "/v1/networks/red", {})
    assert ask("GET", "/v1/networks/blue") == before
    status, answer = ask("PATCH", f"/v1/networks/{made['id']}", {"options": {"ttl": "9"}, "internal": False})
    assert (status, answer["network"]["options"]) == (200, {"ttl": "9"})
    assert ask("PATCH", "/v1/networks/blue", {})[1]["changes"] == []


def test_body_that_is_declared_as_another_type_says_so(ask: Http) -> None:
    message = ask.refused(400, "POST", "/v1/networks", BLUE, kind="application/x-www-form-urlencoded")
    assert message == "the body is not declared as JSON: send 'Content-Type: application/json'"


def test_a_failure_of_ours_is_internal_and_undone(ask: Http, daemon: Living) -> None:
    body = {**BLUE, "options": {"bridge": "br-fail"}}
    daemon.kernel.fail_at("link/br-fail")
    try:
        status, answer = ask("POST", "/v1/networks", body)
    finally:
        daemon.kernel.heal()
    assert (status, answer["error"]["kind"]) == (500, "internal")
    assert ask("POST", "/v1/networks", body)[0] == 201


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("networks", {}, "field 'name' is missing"),
        ("networks", {"name": ""}, "not a name"),
        ("networks", {"name": "a/b"}, "'a/b' is not a name"),
        ("networks", {"name": "a", "colour": 1}, "field 'colour' is unknown"),
        ("networks", {"name": "a", "internal": "yep"}, "field 'internal' must be true or false, not 'yep'"),
        ("networks", {"name": "a", "subnetz": True}, "field 'subnetz' is unknown, did you mean 'subnets'?"),
        ("networks", {"name": True}, "field 'name' must be text, not true"),
        ("networks", {"name": "a", "subnets": [{"subnet": "10.1.0.5/24"}]}, "host bits"),
        ("networks", {"name": "a", "subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.2.0.1"}]}, "gateway 10.2.0.1"),
        ("networks", {"name": "a", "subnets": [{"subnet": "10.1.0.0/24", "range": "10.1.0.0/16"}]}, "range"),
        ("networks", {"name": "a", "subnets": [{"subnet": "10.1.0.0/24", "range": "fd00::/64"}]}, "range"),
        ("networks", {"name": "a", "options": {"mtu": 1400}}, "field 'options.mtu' must be text, not 1400"),
        ("networks", {"name": "a", "labels": {"": "x"}}, "'' is not the key of a label"),
        ("networks", {"name": "a", "labels": {"a=b": "x"}}, "'a=b' is not the key of a label"),
        ("networks", {"name": "a", "labels": {"a\n": "x"}}, "is not the key of a label"),
        ("networks", {"name": "a", "labels": {"a": "x" * 65536}}, "65537 characters of labels are more than 65536"),
        ("networks", [], "the body must be an object, not a list"),
        ("attach", {"network": "a"}, "field 'netns' is missing"),
        ("attach", {"network": "a", "netns": "relative/path"}, "'relative/path'"),
        ("attach", {"network": "a", "netns": "n", "mac": "x"}, "unicast MAC"),
        ("attach", {"network": "a", "netns": "n", "ifname": "x" * 16}, "interface name"),
        (
            "attach",
            {"network": "a", "netns": "n", "ports": [{"port": 0}]},
            "field 'ports.0.port' must be at least 1, not 0",
        ),
        (
            "attach",
            {"network": "a", "netns": "n", "ports": [{"port": 1, "proto": "icmp"}]},
            "'sctp', not 'icmp'",
        ),
        ("attach", {"network": "a", "netns": "n", "addresses": ["10.1"]}, "addresses.0"),
        (
            "attach",
            {"network": "a", "netns": "n", "ports": [{"port": 1}] * 65_536},
            "'ports' has more than 65535",
        ),
        ("detach", {"network": "", "netns": "n"}, "field 'network' is empty"),
    ],
)
def test_bad_bodies_are_named(ask: Http, path: str, body: Any, words: str) -> None:
    message = ask.refused(400, "POST", f"/v1/{path}", body)
    assert words in message
    assert len(message) < 400


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"null", b"[" * 5000, b'"text"', b'{"name": "a\\u0000"}'])
def test_malformed_json_is_refused(ask: Http, raw: bytes) -> None:
    ask.refused(400, "POST", "/v1/networks", raw=raw)


def test_oversized_bodies_are_refused(ask: Http) -> None:
    ask.refused(413, "POST", "/v1/networks", raw=b" " * (MAX_BODY + 1))


def test_unknown_paths_and_methods_are_refused(ask: Http) -> None:
    ask.refused(404, "GET", "/v2/networks")
    ask.refused(404, "GET", "/")
    ask.refused(404, "PUT", "/v1/networks")
    ask.refused(404, "GET", "/v1/attach")


def test_parallel_identical_requests_make_one_network(ask: Http) -> None:
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(ask("POST", "/v1/networks", BLUE)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] + [409] * 7
