"""Names as a lab looks at them: which, asked how, and what is said of those that do not resolve."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import dnslib
import pytest
import yaml

from netplug.lab.file import Lab, load
from netplug.lab.probe import Said, ask
from netplug.lab.state import Member, State, find
from netplug.lab.status import names

HERE = Path("/proc/self/ns/net")
enters = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to enter a network namespace")


def lab_of(folder: Path, containers: dict[str, list[str]], networks: dict[str, object]) -> Lab:
    path = folder / "x.yaml"
    parts = {name: {"host": "a", "networks": nets} for name, nets in containers.items()}
    path.write_text(yaml.safe_dump({"hosts": {"a": {}}, "networks": networks, "containers": parts}, sort_keys=False))
    return load(path)


@pytest.mark.parametrize("off", ["off", "OFF", False])
def test_names_are_of_networks_that_serve_them(tmp_path: Path, off: object) -> None:
    networks = {"blue": {"options": {"icc": False}}, "green": {"options": {"dns": off}}, "red": {}}
    lab = lab_of(tmp_path, {"one": ["blue", "green"], "two": ["blue", "green", "red"]}, networks)
    assert lab.named_pairs() == [("blue", "one", "two")]
    assert lab.pairs() == [("green", "one", "two")]


def gone(folder: Path) -> State:
    """A lab of which nothing runs any more: `one` knew a name server, `two` none, and `six` never had an address."""
    lab = lab_of(folder, {"one": ["blue"], "two": ["blue"], "six": ["blue"]}, {"blue": {}})
    state = State(lab, folder / "x", {"a": Member(0, 0)})
    state.folder.mkdir()
    state.containers |= {"one": {"blue": ("10.1.0.2",)}, "two": {"blue": ("10.1.0.3", "fd00:1::3")}}
    state.servers |= {"one": {"blue": ("10.1.0.1", "fd00:1::1")}, "two": {"blue": ()}}
    return state


def test_who_has_no_name_server_and_who_has_no_address_is_left_out(tmp_path: Path) -> None:
    (found,) = names(gone(tmp_path))
    words = "no answer from 10.1.0.1 or fd00:1::1"
    assert str(found) == f"one does not resolve 'two.blue' in network 'blue': {words}"


def test_state_keeps_whom_containers_ask(tmp_path: Path) -> None:
    state = gone(tmp_path)
    state.save()
    assert find("x", tmp_path) == state


@contextmanager
def server(*replies: str | None, address: str = "127.0.0.1") -> Iterator[int]:
    """A name server that says one zone text after another, None: nothing, and yields its port."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))
        sock.settimeout(20)

        def serve() -> None:
            for text in replies:
                data, peer = sock.recvfrom(4096)
                question = dnslib.DNSRecord.parse(data)
                if text is None:
                    continue
                reply = question.reply()
                reply.header.rcode = dnslib.RCODE.NOERROR if text else dnslib.RCODE.NXDOMAIN
                reply.add_answer(*dnslib.RR.fromZone(text))
                sock.sendto(reply.pack(), peer)

        thread = Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            thread.join()


@enters
def test_answers_are_read(tmp_path: Path) -> None:
    two = "web.blue. 5 A 10.1.0.2\nweb.blue. 5 A 10.1.0.3\nweb.blue. 5 AAAA fd00:1::2"
    with server(two, two, "") as port:
        assert ask(HERE, "127.0.0.1", "web.blue", 4, port=port) == Said("NOERROR", frozenset({"10.1.0.2", "10.1.0.3"}))
        assert ask(HERE, "127.0.0.1", "web.blue", 6, port=port) == Said("NOERROR", frozenset({"fd00:1::2"}))
        assert ask(HERE, "127.0.0.1", "no.blue", 4, port=port) == Said("NXDOMAIN", frozenset())
    with server(two, address="::1") as port:
        assert ask(HERE, "::1", "web.blue", 6, port=port) == Said("NOERROR", frozenset({"fd00:1::2"}))


@enters
def test_lost_question_is_asked_again_and_silence_ends() -> None:
    with server(None, "web.blue. 5 A 10.1.0.2") as port:
        assert ask(HERE, "127.0.0.1", "web.blue", 4, port=port) == Said("NOERROR", frozenset({"10.1.0.2"}))
    with server(None) as port:
        assert ask(HERE, "127.0.0.1", "web.blue", 4, timeout_s=0.1, port=port) is None
    # Nobody is there any more: told at once by the kernel.
    assert ask(HERE, "127.0.0.1", "web.blue", 4, timeout_s=60, port=port) is None
    assert ask(Path("/nowhere"), "127.0.0.1", "web.blue", 4, port=port) is None
