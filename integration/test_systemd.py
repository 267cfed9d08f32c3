"""The units on a real systemd beside a real dockerd: no request fails while the daemon restarts, dies or hangs."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Booted, CommandError, ServiceDockerd, ServiceNetplug, unbootable, wait_until
from harness.netplugd import COMMAND

from netplug.cli import UNREACHABLE
from netplug.lab.image import IMAGE, PAGE

pytestmark = [
    pytest.mark.skipif(bool(unbootable()), reason=unbootable()),
    pytest.mark.skipif(not Path("/lib/systemd/system/docker.service").exists(), reason="needs docker.io (make setup)"),
]

PLUGIN, API, CNI = "/run/docker/plugins/pynet.sock", "/run/netplug/netplug.sock", "/run/netplug/cni.sock"
HTTPD = ("httpd", "-f", "-h", "/www")
RESTARTS = 10
WATCHDOG_S = 5
ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    try:
        sock.connect(sys.argv[1])
    except PermissionError:
        sys.exit("refused")
    sock.sendall(b"GET /v1/version HTTP/1.1\\r\\nHost: netplug\\r\\nConnection: close\\r\\n\\r\\n")
    print(sock.recv(100).decode().splitlines()[0])
"""
GROUP = "netplug"


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    """A machine whose boot starts netplug's units and docker."""
    with Booted("systemd") as it:
        it.enable("docker.service")
        yield it


@pytest.fixture(scope="module")
def booted(machine: Booted) -> ServiceNetplug:
    it = ServiceNetplug(machine, drop_in=f"WatchdogSec={WATCHDOG_S}")
    assert machine.boot() == "running"
    return it


@pytest.fixture(scope="module")
def boot_order(booted: ServiceNetplug) -> dict[str, int]:
    """When units came up at the boot, in microseconds of the machine's clock."""

    def entered(unit: str, state: str) -> int:
        return int(booted.machine.show(unit, f"{state}TimestampMonotonic")[f"{state}TimestampMonotonic"])

    return {
        "socket": entered(booted.SOCKET, "ActiveEnter"),
        "starts": entered(booted.UNIT, "InactiveExit"),
        "ready": entered(booted.UNIT, "ActiveEnter"),
        "engine": entered(ServiceDockerd.UNIT, "InactiveExit"),
    }


@pytest.fixture(scope="module")
def netplug(
    booted: ServiceNetplug,
    boot_order: dict[str, int],  # noqa: ARG001 - read before a test restarts anything
) -> ServiceNetplug:
    return booted


@pytest.fixture(scope="module")
def dockerd(netplug: ServiceNetplug) -> ServiceDockerd:
    it = ServiceDockerd(netplug.machine)
    it.docker("network", "create", "-d", "pynet", "blue")
    it.docker("run", "--rm", "--network", "blue", "-p", "1", IMAGE, "true")  # makes what is made once and kept
    return it


@contextmanager
def load(*works: Callable[[int], object]) -> Iterator[list[int]]:
    """Repeat each work in a thread of its own during the block, and fail as the first that fails.

    Yields the numbers of what was done.
    """
    stop, done, failed = threading.Event(), [0] * len(works), list[BaseException]()

    def repeat(index: int) -> None:
        try:
            while not stop.is_set():
                works[index](done[index])
                done[index] += 1
        except BaseException as exc:  # noqa: BLE001 - it is raised below
            failed.append(exc)
            stop.set()

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    if failed:
        raise failed[0]


def waiting(machine: Booted, socket: str) -> int:
    """Return how many connections wait in the queue of a unix socket."""
    lines = machine.output("ss", "-xlH", "src", f"unix:{socket}").splitlines()
    return int(lines[0].split()[2]) if lines else 0


def test_boot_has_the_sockets_first_then_the_daemon_then_the_engine(
    netplug: ServiceNetplug, boot_order: dict[str, int]
) -> None:
    machine = netplug.machine
    times = [boot_order[key] for key in ("socket", "starts", "ready", "engine")]
    assert times[0] > 0
    assert times == sorted(times)
    listening = machine.output("stat", "-c", "%a %U %n", PLUGIN, API, CNI).splitlines()
    assert listening == [f"600 root {path}" for path in (PLUGIN, API, CNI)]
    assert re.fullmatch(r"\d+ networks, \d+ endpoints", machine.show(netplug.UNIT, "StatusText")["StatusText"])
    assert "socket.differs" not in machine.journal(netplug.UNIT)


def test_request_starts_a_daemon_that_was_stopped(netplug: ServiceNetplug, dockerd: ServiceDockerd) -> None:
    netplug.stop()
    assert netplug.pid == 0
    assert all(netplug.host.path(path).is_socket() for path in (PLUGIN, API, CNI))
    dockerd.docker("network", "create", "-d", "pynet", "woken")
    assert netplug.pid
    netplug.stop()
    dockerd.docker("network", "rm", "woken")
    netplug.stop()
    assert "blue" in netplug.cli("network", "ls")


def test_restarts_fail_no_request_of_docker(netplug: ServiceNetplug, dockerd: ServiceDockerd) -> None:
    def run(_: int) -> None:
        dockerd.docker("run", "--rm", "--network", "blue", "-p", "1", IMAGE, "true")

    def networks(number: int) -> None:
        dockerd.docker("network", "create", "-d", "pynet", f"loop{number}")
        dockerd.docker("network", "rm", f"loop{number}")

    def commands(_: int) -> None:
        netplug.cli("network", "ls")

    took = []
    with load(run, networks, commands) as done:
        for _ in range(RESTARTS):
            before, started = list(done), time.monotonic()
            netplug.restart()
            took.append(time.monotonic() - started)
            wait_until(lambda: all(a < b for a, b in zip(before, done, strict=True)), 60, "each work goes on")  # noqa: B023
    assert min(done) >= RESTARTS
    assert netplug.drift() == ""
    assert max(took) < 10


def test_requests_that_wait_survive_the_death_of_the_daemon(netplug: ServiceNetplug, dockerd: ServiceDockerd) -> None:
    machine, before = netplug.machine, netplug.pid
    machine.systemctl("kill", "--kill-whom=main", "--signal=SIGSTOP", netplug.UNIT)
    with ThreadPoolExecutor() as pool:
        created = pool.submit(dockerd.docker, "network", "create", "-d", "pynet", "crash")
        listed = [pool.submit(netplug.cli, "network", "ls") for _ in range(3)]
        wait_until(lambda: waiting(machine, PLUGIN) and waiting(machine, API) == len(listed), 30, "requests wait")
        netplug.kill()
        assert created.result(60)
        assert all("blue" in it.result(60) for it in listed)
    assert netplug.pid not in {0, before}
    assert "crash" in netplug.cli("network", "ls")
    dockerd.docker("network", "rm", "crash")
    assert netplug.drift() == ""


def test_daemon_that_hangs_is_replaced(netplug: ServiceNetplug, dockerd: ServiceDockerd) -> None:
    machine, before = netplug.machine, netplug.pid
    machine.systemctl("kill", "--kill-whom=main", "--signal=SIGSTOP", netplug.UNIT)
    wait_until(lambda: netplug.pid not in {0, before} and netplug.running, WATCHDOG_S + 25, "another daemon")
    wait_until(lambda: "Watchdog timeout" in machine.journal(netplug.UNIT), 30, "systemd's word in the log")
    dockerd.docker("run", "--rm", "--network", "blue", IMAGE, "true")
    assert netplug.drift() == ""


def test_stack_of_the_loop_of_a_daemon_that_is_aborted_is_in_the_log(netplug: ServiceNetplug) -> None:
    machine, before = netplug.machine, netplug.pid
    machine.systemctl("kill", "--kill-whom=main", "--signal=SIGABRT", netplug.UNIT)
    wait_until(lambda: netplug.pid not in {0, before} and netplug.running, 40, "another daemon")
    stack = r"Fatal Python error: Aborted\n[^\n]*: Stack [^\n]*\n(?:[^\n]*:   File [^\n]*\n)*[^\n]*asyncio/"
    wait_until(lambda: re.search(stack, machine.journal(netplug.UNIT)), 30, "the stack of the loop in the log")


def test_reload_uses_what_it_can_and_names_the_rest(netplug: ServiceNetplug) -> None:
    machine, before = netplug.machine, netplug.pid

    def reloaded(settings: str, words: str) -> str:
        machine.write("/etc/netplug/netplug.toml", settings)
        told = len(machine.journal(netplug.UNIT))
        machine.systemctl("reload", netplug.UNIT)
        return wait_until(
            lambda: said if words in (said := machine.journal(netplug.UNIT)[told:]) else "", what=f"{words} in the log"
        )

    said = reloaded('address_pool = ["base=10.77.0.0/16,size=24"]\ndriver_name = "green"\n', "settings.reloaded")
    assert re.search(r"settings.need_restart .*settings=\['driver_name'\]", said)
    netplug.cli("network", "create", "reloaded")
    assert "10.77.0.0/24" in netplug.cli("network", "ls")
    netplug.cli("network", "rm", "reloaded")
    assert "dns_upstream" in reloaded('dns_upstream = ["nowhere"]\n', "settings.refused")
    wait_until(lambda: "degraded: settings 1" in status(netplug), 15, "the status")
    reloaded("", "settings.reloaded")
    wait_until(lambda: "degraded" not in status(netplug), 15, "the status")
    assert netplug.pid == before
    assert machine.show(netplug.UNIT, "ActiveState")["ActiveState"] == "active"


def status(netplug: ServiceNetplug) -> str:
    return netplug.machine.show(netplug.UNIT, "StatusText")["StatusText"]


def test_daemon_with_wrong_settings_says_so_to_who_waits_and_starts_when_they_are_right(
    netplug: ServiceNetplug, dockerd: ServiceDockerd
) -> None:
    machine = netplug.machine
    netplug.stop()
    machine.write("/etc/netplug/netplug.toml", 'store = "papyrus"\n')
    with pytest.raises(CommandError, match=r"does not start: setting store .*papyrus"):
        dockerd.docker("network", "create", "-d", "pynet", "impatient")
    said = machine.run([str(COMMAND), "doctor"], check=False)
    assert said.returncode == UNREACHABLE
    assert re.search(r"failure +daemon .* does not start", said.stdout)
    by_hand = machine.run([str(COMMAND), "serve", "--store", "sqlite"], check=False)
    assert by_hand.returncode == UNREACHABLE
    assert re.search("held by systemd.*systemctl start netplug", by_hand.stderr)
    machine.write("/etc/netplug/netplug.toml", "")
    wait_until(lambda: netplug.running, 30, "a daemon")
    dockerd.docker("network", "create", "-d", "pynet", "patient")
    dockerd.docker("network", "rm", "patient")


def test_containers_run_again_after_a_reboot() -> None:
    with Booted("rebooted") as machine:
        machine.enable("docker.service")
        netplug = ServiceNetplug(machine)
        assert machine.boot() == "running"
        dockerd = ServiceDockerd(machine)
        dockerd.docker("network", "create", "-d", "pynet", "blue")
        dockerd.run("--name", "web", "--restart", "always", "--network", "blue", "-p", "8080:80", command=HTTPD)
        started = time.monotonic()
        assert machine.reboot() == "running"
        assert time.monotonic() - started < 60
        fetch = ["busybox", "wget", "-qO-", "http://127.0.0.1:8080/"]
        wait_until(lambda: machine.run(fetch, check=False).stdout == PAGE, 30, "the published page")
        wait_until(lambda: netplug.drift() == "", 30, "no drift")


def test_stop_of_all_leaves_no_socket_for_dockerd_to_wait_for(netplug: ServiceNetplug) -> None:
    machine = netplug.machine
    machine.systemctl("stop", netplug.SOCKET, netplug.UNIT)
    assert not machine.path(PLUGIN).exists()
    machine.systemctl("start", netplug.UNIT)
    assert machine.path(PLUGIN).is_socket()
    assert machine.show(netplug.SOCKET, "ActiveState")["ActiveState"] == "active"


def test_members_of_the_group_use_the_api_of_the_confined_service(netplug: ServiceNetplug) -> None:
    machine = netplug.machine
    machine.run(["groupadd", "--system", GROUP])

    def asks(socket: str, groups: str) -> str:
        user = ["setpriv", "--reuid=65534", "--regid=65534", groups, "--no-new-privs"]
        done = machine.run([*user, "--", "/usr/bin/python3", "-c", ASK, socket], check=False)
        return (done.stdout or done.stderr).strip()

    def modes() -> list[str]:
        return machine.output("stat", "-c", "%a %G", PLUGIN, API, CNI).splitlines()

    machine.write("/etc/netplug/netplug.toml", f'socket_group = "{GROUP}"\n')
    netplug.restart()
    # The service may not give files to a group of others, and says what to do.
    said = r"socket\.group_refused .*SupplementaryGroups=\d+.*reason='Operation not permitted'"
    wait_until(lambda: re.search(said, machine.journal(netplug.UNIT)), 30, "what to do, in the log")
    assert modes() == ["600 root"] * 3
    drop_in = f"/etc/systemd/system/{netplug.UNIT}.d/group.conf"
    machine.write(drop_in, f"[Service]\nSupplementaryGroups={GROUP}\n")
    machine.systemctl("daemon-reload")
    netplug.restart()
    assert modes() == ["600 root", f"660 {GROUP}", "600 root"]
    assert asks(API, f"--groups={GROUP}") == "HTTP/1.1 200 OK"
    assert [asks(socket, f"--groups={GROUP}") for socket in (PLUGIN, CNI)] == ["refused"] * 2
    assert asks(API, "--clear-groups") == "refused"
    # systemd keeps the socket while the daemon is away, and the group with it.
    netplug.stop()
    assert asks(API, f"--groups={GROUP}") == "HTTP/1.1 200 OK"
    machine.write("/etc/netplug/netplug.toml", "")
    machine.path(drop_in).unlink()
    machine.systemctl("daemon-reload")
    netplug.restart()
    wait_until(lambda: "socket.open" in machine.journal(netplug.UNIT), 30, "the word in the log")
    assert asks(API, f"--groups={GROUP}") == "HTTP/1.1 200 OK"
    machine.systemctl("restart", netplug.SOCKET, netplug.UNIT)
    assert modes() == ["600 root"] * 3
    assert asks(API, f"--groups={GROUP}") == "refused"
