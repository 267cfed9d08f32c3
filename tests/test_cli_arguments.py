"""What the command makes of its arguments, and how it prints tables."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplug.cli import CliError
from netplug.cli.arguments import address, ifname, mac, netns, network, options, subnets
from netplug.cli.client import Client
from netplug.cli.output import table
from netplug.cli.ports import Publish, parse


def test_gateway_and_range_go_to_their_subnet() -> None:
    rows = subnets(["10.1.0.0/24", "fd00::/64"], ["fd00::1", "10.1.0.9"], ["10.1.0.128/25"])
    assert rows == [
        {"subnet": "10.1.0.0/24", "gateway": "10.1.0.9", "range": "10.1.0.128/25"},
        {"subnet": "fd00::/64", "gateway": "fd00::1", "range": None},
    ]
    with pytest.raises(CliError, match="two values of gateway"):
        subnets(["10.1.0.0/24"], ["10.1.0.1", "10.1.0.2"], [])


def test_netns_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert netns("./c1") == str(tmp_path / "c1")
    assert netns("c1") == "c1"
    assert netns("/proc/17/ns/net") == "/proc/17/ns/net"


def test_values_are_normalised() -> None:
    assert mac("02:AB:00:00:00:01") == "02:ab:00:00:00:01"
    assert address("FD00::0001", "--ip") == "fd00::1"
    assert str(network("fd00::/64", "--subnet")) == "fd00::/64"
    assert ifname("eth0") == "eth0"
    assert options(["a=b=c", "empty="], "none") == {"mode": "none", "a": "b=c", "empty": ""}
    with pytest.raises(CliError, match="unicast"):
        mac("01:00:5e:00:00:01")


# Published ports


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [Publish(80)]),
        ("8080:80", [Publish(80, host_port=8080)]),
        (":80", [Publish(80)]),
        ("127.0.0.1::80", [Publish(80, host_address="127.0.0.1")]),
        ("127.0.0.1:8080:80/UDP", [Publish(80, "udp", "127.0.0.1", 8080)]),
        ("[::1]:8080:80", [Publish(80, host_address="::1", host_port=8080)]),
        ("8000-8009:80", [Publish(80, host_port=8000, host_port_end=8009)]),
        ("8000-8001:80-81/sctp", [Publish(80, "sctp", None, 8000), Publish(81, "sctp", None, 8001)]),
        ("80-81", [Publish(80), Publish(81)]),
        ("8000-8000:80", [Publish(80, host_port=8000)]),
    ],
)
def test_published_ports_are_read_as_docker_reads_them(text: str, ports: list[Publish]) -> None:
    assert list(parse(text)) == ports


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "x", "80/", "80/icmp", "0", "65536", "8080:", "8080:0", "-80", "80-", "81-80", "1:2:3", "1.2.3:1:2",
        "::1:8080:80", "[127.0.0.1]:80:80", "8000-8002:80-81", "8080:80:tcp", "[::1]", "[::1]:80", "0-5:80", "٣:80",
        "host:8080:80", "8080:80/tcp/udp", " 80", "1e3",
    ],
)  # fmt: skip
def test_bad_published_ports_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse(text)


@st.composite
def a_port(draw: st.DrawFn) -> Publish:
    host = draw(st.integers(0, 65535))
    end = draw(st.just(0) | st.integers(host + 1, 65535)) if 0 < host < 65535 else 0
    address = draw(st.none() | st.ip_addresses().map(str).filter(lambda text: "%" not in text))
    return Publish(draw(st.integers(1, 65535)), draw(st.sampled_from(["tcp", "udp", "sctp"])), address, host, end)


@given(a_port())
def test_published_ports_survive_writing_and_reading(port: Publish) -> None:
    assert parse(str(port)) == (port,)


@given(st.text(alphabet="0123456789:-/[]abtcpudp.", max_size=30) | st.text(max_size=30))
def test_any_text_is_ports_or_an_error(text: str) -> None:
    try:
        ports = parse(text)
    except ValueError as exc:
        assert repr(text[:80]) in str(exc)  # noqa: PT017 - most texts are errors, some are not
    else:
        assert all(1 <= port.port <= 65535 for port in ports)


# Tables


@given(
    st.lists(
        st.tuples(st.text(alphabet="[]/:ab19", max_size=300), st.lists(st.text("0123.:>-", min_size=1), max_size=4))
    )
)
def test_tables_cut_nothing(rows: list[tuple[str, list[str]]]) -> None:
    lines = table(("one", "two"), rows).split("\n")
    assert len(lines) == 1 + len(rows)
    for line, (first, second) in zip(lines[1:], rows, strict=True):
        assert line.rstrip() == line
        assert line.startswith(first)
        assert line.endswith(",".join(second))


def test_client_quotes_references(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="no daemon"):
        Client(tmp_path).get("networks", "a/b?c#d")


def test_request_with_a_body_comes_in_one_piece(tmp_path: Path) -> None:
    """A daemon of systemd's socket closes when it has answered, which it may without the body."""
    with socket.socket(socket.AF_UNIX) as sock, ThreadPoolExecutor(1) as pool:
        sock.bind(str(tmp_path / "netplug.sock"))
        sock.listen()

        def serve() -> bytes:
            connection, _ = sock.accept()
            with connection:
                got = connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            return got

        for _ in range(50):
            asked = pool.submit(serve)
            assert Client(tmp_path).post("dns", "host", body={"on": True}) == {}
            assert asked.result(10).endswith(b'{"on": true}')
