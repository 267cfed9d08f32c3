"""The daemon's life: what it holds, who is refused, what is left behind."""

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest
from living import DEADLINE_S, Living, a_namespace, living, settings_in, until

from netplug.cli import OK, UNREACHABLE, USAGE, CliError
from netplug.cli.client import Client
from netplug.daemon.address_spaces import site_prefix, spaces
from netplug.daemon.drivers import load_drivers
from netplug.daemon.lock import Held
from netplug.daemon.systemd import notify
from netplug.drivers.api import HostFacts
from netplug.kernel.fake.kernel import FakeKernel
from netplug.setting_values import AddressPool
from netplug.store.sqlite import SqliteStore

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a network namespace of its own")


def sockets_of(daemon: Living) -> list[bool]:
    return [path.exists() for path in (daemon.settings.api_socket, daemon.settings.plugin_socket)]


def test_both_sockets_answer_and_are_gone_afterwards(tmp_path: Path) -> None:
    with living(tmp_path) as daemon:
        assert sockets_of(daemon) == [True, True]
        assert [
            path.stat().st_mode & 0o777 for path in (daemon.settings.api_socket, daemon.settings.plugin_socket)
        ] == [
            0o600,
            0o600,
        ]
        assert activate(daemon.settings.plugin_socket)["Implements"] == ["NetworkDriver", "IpamDriver"]
    assert sockets_of(daemon) == [False, False]


def activate(path: Path) -> dict[str, list[str]]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect(str(path))
        sock.sendall(b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    found: dict[str, list[str]] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def test_records_outlive_the_daemon_and_so_does_the_data_plane(tmp_path: Path) -> None:
    with living(tmp_path) as first:
        made = first.client.post("networks", body={"name": "blue", "ipv6": True})
    kernel = FakeKernel()  # another, since each belongs to one event loop, of the same world
    kernel._world = first.kernel._world
    assert "link/np-" in kernel.dump()
    second = Living(settings_in(tmp_path), kernel=kernel).start()
    try:
        assert second.client.get("networks")["networks"] == [made]
        assert second.client.get("diff")["differences"] == []
    finally:
        second.stop()


def test_what_vanished_meanwhile_is_made_anew_before_anyone_is_answered(tmp_path: Path) -> None:
    with living(tmp_path) as first:
        first.client.post("networks", body={"name": "blue", "options": {"bridge": "br-blue"}})
    second = Living(settings_in(tmp_path), kernel=FakeKernel()).start()
    try:
        assert second.client.get("diff")["differences"] == []
    finally:
        second.stop()


@pytest.mark.parametrize("shared", ["state_dir", "run_dir", "plugin_dir", "namespace"])
def test_a_second_daemon_is_refused_and_the_first_undisturbed(tmp_path: Path, shared: str) -> None:
    namespace = a_namespace()
    first = Living(settings_in(tmp_path / "1"), namespace=namespace).start()
    try:
        flags = {} if shared == "namespace" else {shared: getattr(first.settings, shared)}
        settings = settings_in(tmp_path / "2", **flags)
        second = Living(settings, namespace=namespace if shared == "namespace" else a_namespace())
        started = time.monotonic()
        second.launch()
        second.join()
        assert time.monotonic() - started < 5
        assert isinstance(second.error, Held)
        assert f"process {os.getpid()}" in second.error.message
        assert sockets_of(first) == [True, True]
        assert first.client.get("networks") == {"networks": [], "note": ""}
        assert activate(first.settings.plugin_socket)
        own = [p for p in (settings.api_socket, settings.plugin_socket) if p.parent.parent == tmp_path / "2"]
        assert not any(path.exists() for path in own)
    finally:
        first.stop()


def test_sockets_of_a_dead_daemon_are_replaced(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    for path in (settings.api_socket, settings.plugin_socket):
        path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    with living(tmp_path) as daemon:
        assert daemon.client.get("version")


def test_a_kernel_that_does_not_open_leaves_no_sockets(tmp_path: Path) -> None:
    class Broken(Living):
        async def _open_kernel(self) -> FakeKernel:
            raise PermissionError(1, "no netlink for you")

    daemon = Broken(settings_in(tmp_path))
    with pytest.raises(PermissionError):
        daemon.start()
    daemon.join()
    assert sockets_of(daemon) == [False, False]
    with living(tmp_path):
        pass


def test_a_stop_during_the_start_ends_it(tmp_path: Path) -> None:
    class Slow(Living):
        async def _open_kernel(self) -> FakeKernel:
            self.opening = True
            await asyncio.Event().wait()
            raise AssertionError

    daemon = Slow(settings_in(tmp_path))
    daemon.launch()
    until(lambda: getattr(daemon, "opening", False), "the kernel is being opened")
    daemon.stop()
    assert daemon.error is None
    assert sockets_of(daemon) == [False, False]


def test_a_stop_lets_running_requests_end(tmp_path: Path) -> None:
    class Slow(FakeKernel):
        slow = False
        asked, go_on = threading.Event(), threading.Event()

        async def facts(self) -> HostFacts:
            if self.slow:
                self.asked.set()
                await asyncio.to_thread(self.go_on.wait, DEADLINE_S)
            return await super().facts()

    kernel = Slow()
    daemon = Living(settings_in(tmp_path), kernel=kernel).start()
    made: list[dict[str, str]] = []
    thread = threading.Thread(target=lambda: made.append(daemon.client.post("networks", body={"name": "blue"})))
    kernel.slow = True
    thread.start()
    assert kernel.asked.wait(DEADLINE_S)
    daemon.tell_to_stop()
    until(lambda: sockets_of(daemon) == [False, False], "the files are gone while the request runs")
    kernel.go_on.set()
    thread.join(DEADLINE_S)
    daemon.join()
    assert made[0]["name"] == "blue"
    assert daemon.error is None


def test_a_successors_socket_is_not_unlinked(tmp_path: Path) -> None:
    with living(tmp_path) as daemon:
        path = daemon.settings.plugin_socket
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


def test_docker_may_be_absent(tmp_path: Path) -> None:
    with living(tmp_path, docker_host=f"unix://{tmp_path}/no-docker.sock") as daemon:
        assert daemon.client.get("endpoints") == {"endpoints": [], "note": ""}


# Parts


async def test_site_prefix_is_made_up_once() -> None:
    store, other = await SqliteStore.open(":memory:"), await SqliteStore.open(":memory:")
    prefix = await site_prefix(store)
    assert prefix.subnet_of(ip_network("fd00::/8"))  # type: ignore[arg-type]
    assert prefix.prefixlen == 48
    assert await site_prefix(store) == prefix
    assert await site_prefix(other) != prefix
    await store.close()
    await other.close()


def test_address_pools_take_the_place_of_the_default_ones() -> None:
    prefix = ip_network("fd00::/48")
    default = [str(base.network) for base in spaces(prefix, [])[0].bases]  # type: ignore[arg-type]
    assert default == ["10.208.0.0/12", "fd00::/49"]
    pools = [AddressPool.parse("base=192.168.0.0/16,size=26")]
    four = spaces(prefix, pools)  # type: ignore[arg-type]
    assert [(str(base.network), base.size) for base in four[0].bases] == [("192.168.0.0/16", 26), ("fd00::/49", 64)]
    six = spaces(prefix, [AddressPool.parse("base=fd01::/48,size=64")])  # type: ignore[arg-type]
    assert [str(base.network) for base in six[0].bases] == ["10.208.0.0/12", "fd01::/48"]
    assert {space.name for space in four} == {"local", "global", "external"}


def test_drivers_are_there_by_their_modes() -> None:
    assert {"bridge", "none"} <= set(load_drivers())


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    address = f"@netplug-test-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0"))
        systemd.settimeout(DEADLINE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"
    notify("STOPPING=1")  # nobody listens any more: no error
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


# The whole process


def serve(folder: Path, *flags: str) -> list[str]:
    settings = settings_in(folder)
    return [
        *("unshare", "-n", sys.executable, "-c", "import sys; from netplug.cli import main; sys.exit(main())", "serve"),
        *("--state-dir", str(settings.state_dir), "--run-dir", str(settings.run_dir)),
        *("--plugin-dir", str(settings.plugin_dir), "--docker-host", "none", *flags),
    ]


@contextmanager
def process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the daemon in a network namespace of its own until it says that it is ready."""
    folder.mkdir(exist_ok=True)
    address = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.settimeout(DEADLINE_S)
        env = {**os.environ, "NOTIFY_SOCKET": str(address)}
        with subprocess.Popen(serve(folder), env=env, stderr=subprocess.PIPE, text=True) as daemon:
            try:
                assert systemd.recv(100) == b"READY=1"
                yield daemon
            finally:
                daemon.kill()


@NEEDS_ROOT
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_the_process_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    settings = settings_in(tmp_path)
    with process(tmp_path) as daemon:
        assert Client(settings.run_dir).get("version")["pid"] == daemon.pid
        daemon.send_signal(number)
        assert daemon.wait(DEADLINE_S) == OK
        assert daemon.stderr is not None
        assert "Traceback" not in daemon.stderr.read()
    assert not settings.api_socket.exists()
    assert not settings.plugin_socket.exists()


@NEEDS_ROOT
def test_a_second_process_ends_with_three_and_says_who_holds_it(tmp_path: Path) -> None:
    with process(tmp_path) as daemon:
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "import netplug.daemon.life"], check=True, timeout=DEADLINE_S)
        imported = time.monotonic()
        second = subprocess.run(serve(tmp_path), capture_output=True, text=True, check=False, timeout=DEADLINE_S)
        took = time.monotonic() - imported
        assert second.returncode == UNREACHABLE
        assert re.fullmatch(rf"netplug: .*process {daemon.pid} .*\n", second.stderr)
        assert took < 2 * (imported - started) + 1  # 3 s where the import takes one; more on a busy machine
        assert Client(settings_in(tmp_path).run_dir).get("version")["pid"] == daemon.pid


@NEEDS_ROOT
def test_a_killed_process_is_replaced(tmp_path: Path) -> None:
    with process(tmp_path) as daemon:
        daemon.kill()
        daemon.wait(DEADLINE_S)
    with pytest.raises(CliError, match="no daemon answers"):
        Client(settings_in(tmp_path).run_dir).get("version")
    (tmp_path / "notify").unlink()
    with process(tmp_path):
        pass


def test_wrong_settings_end_with_two(tmp_path: Path) -> None:
    command = [part for part in serve(tmp_path, "--store", "papyrus") if part not in {"unshare", "-n"}]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == USAGE
    assert re.fullmatch(r"netplug: .*--store.*papyrus.*\n", done.stderr)
