"""`netplug install-service` and `netplug uninstall` on a real systemd, beside a real dockerd."""

import os
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from harness import Booted, CommandError, ServiceDockerd, assert_same, snapshot, unbootable, wait_until
from harness.netplugd import COMMAND, RUN_DIR
from harness.snapshot import Snapshot

from netplug.lab.image import IMAGE

pytestmark = [
    pytest.mark.skipif(bool(unbootable()), reason=unbootable()),
    pytest.mark.skipif(not Path("/lib/systemd/system/docker.service").exists(), reason="needs docker.io (make setup)"),
]
OURS = "/etc/systemd/system/netplug.service"
VOLATILE = ("var/log", "var/lib/docker", "var/lib/containerd", "var/lib/containers", "var/lib/systemd", "var/tmp")
"""Folders that others than netplug write at any time."""


def files(machine: Booted, *without: str) -> tuple[str, ...]:
    """Return what differs from the machine that it is a copy of, on all of its disk: paths, modes and digests.

    `without`: folders that are left out.
    """
    upper = machine.changes
    found = []
    for folder, _, names in os.walk(upper):
        below = Path(folder).relative_to(upper)
        if str(below).startswith((*VOLATILE, *without)):
            continue
        if not (Path("/") / below).is_dir():
            found.append(f"{below}/ {Path(folder).stat().st_mode:o}")
        for name in names:
            path = Path(folder) / name
            if str(below / name).startswith((*VOLATILE, *without)):
                continue
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            target = str(path.readlink()) if path.is_symlink() else ""
            found.append(f"{below}/{name} {status.st_mode:o} {sha256(content).hexdigest()} {target}")
    return tuple(sorted(found))


class Installed:
    """A machine with dockerd, and what it was like before netplug."""

    def __init__(self, machine: Booted) -> None:
        self.machine = machine
        self.dockerd = ServiceDockerd(machine)
        self.before = self.look()

    def look(self, *without: str) -> Snapshot:
        return {**snapshot(self.machine), "files": files(self.machine, *without)}

    def netplug(self, *arguments: str) -> str:
        return self.machine.run([str(COMMAND), *arguments], timeout_s=120).stdout

    def refused(self, *arguments: str) -> str:
        with pytest.raises(CommandError) as failed:
            self.netplug(*arguments)
        assert failed.value.code == 1
        return failed.value.stderr

    def pid(self) -> str:
        return self.machine.show("netplug.service", "MainPID")["MainPID"]


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    with Booted("install") as it:
        it.enable("docker.service")
        assert it.boot() == "running"
        yield it


@pytest.fixture(scope="module")
def host(machine: Booted) -> Installed:
    it = Installed(machine)
    it.dockerd.docker("network", "create", "warm")  # makes what is made once and kept
    it.dockerd.docker("network", "rm", "warm")
    it.before = it.look()
    return it


def test_dry_run_says_all_and_changes_nothing(host: Installed) -> None:
    said = host.netplug("install-service", "--dry-run")
    assert f"write {OURS}" in said
    assert "run systemctl enable netplug.socket netplug.service" in said
    assert_same(host.before, host.look)


def test_units_of_a_package_are_left_alone(host: Installed) -> None:
    unit = "/usr/lib/systemd/system/netplug.service"
    host.machine.write(unit, "[Service]\nExecStart=/usr/bin/netplug serve\n")
    assert f"a package of this system brings the service already ({unit})" in host.refused("install-service")
    host.machine.run(["rm", unit])
    assert_same(host.before, host.look)


def test_installed_service_serves_docker_and_goes_without_a_trace(host: Installed) -> None:
    machine, dockerd = host.machine, host.dockerd
    assert "runs as netplug.service" in host.netplug("install-service")
    assert f"ExecStart={COMMAND} serve" in machine.output("cat", OURS)
    dockerd.docker("network", "create", "-d", "pynet", "blue")
    dockerd.docker("run", "-d", "--name", "web", "--network", "blue", IMAGE, "sleep", "1000")
    dockerd.docker("run", "--rm", "--network", "blue", IMAGE, "ping", "-c1", "web")

    pid = host.pid()
    again = host.netplug("install-service")
    assert "write" not in again
    assert host.pid() == pid

    machine.run(["sh", "-c", f"echo '# mine' >> {OURS}"])
    assert f"{OURS} was changed since netplug wrote it" in host.refused("install-service")
    machine.run(["sed", "-i", "/# mine/d", OURS])

    assert "1 container is attached and would lose their network: web" in host.refused("uninstall")
    assert host.pid() == pid

    dockerd.docker("rm", "-f", "web")
    dockerd.docker("network", "rm", "blue")
    host.netplug("network", "create", "red")

    said = host.netplug("uninstall")
    assert f"removed {OURS}" in said
    assert "kept /var/lib/netplug: records, of networks: red (--purge removes them)" in said
    before = tuple(it for it in host.before["files"] if not it.startswith("var/lib/netplug"))
    assert_same({**host.before, "files": before}, lambda: host.look("var/lib/netplug"))

    host.netplug("install-service")
    assert "red" in host.netplug("network", "ls")
    host.netplug("uninstall", "--purge")
    assert_same(host.before, host.look)
    assert "removed" not in host.netplug("uninstall", "--purge")
    assert_same(host.before, host.look)


def test_daemon_that_was_started_by_hand_is_not_doubled(host: Installed) -> None:
    daemon = host.machine.popen([str(COMMAND), "serve", "--docker-host", "none"], log="byhand.log")
    wait_until(host.machine.path(f"{RUN_DIR}/netplug.sock").exists, 30, "the daemon")
    wait_until(lambda: "netplug" in host.netplug("version"), 30, "the daemon", ignoring=(CommandError,))
    assert "a daemon runs that is no service" in host.refused("install-service")
    host.netplug("uninstall", "--purge")
    daemon.wait(30)
    assert_same(host.before, host.look)


def test_service_is_started_at_each_boot_until_it_is_uninstalled() -> None:
    with Booted("boots") as machine:
        machine.run(["sh", "-c", f"rm -f {machine.dir}/machine/root/etc/resolv.conf"])
        machine.write("/etc/resolv.conf", "nameserver 192.0.2.53\n")
        assert machine.boot() == "running"
        before = files(machine)
        machine.run([str(COMMAND), "install-service"])
        machine.run([str(COMMAND), "network", "create", "red"])
        machine.run([str(COMMAND), "dns", "host", "on"])
        assert "127.0.25.53" in machine.output("cat", "/etc/resolv.conf")
        assert machine.reboot() == "running"
        assert machine.systemctl("is-active", "netplug.service") == "active"
        assert "red" in machine.output(str(COMMAND), "network", "ls")
        assert "host.netplug.internal resolves to" in machine.output(str(COMMAND), "dns", "host", "status")
        machine.run([str(COMMAND), "uninstall", "--purge"])
        assert machine.reboot() == "running"
        assert not machine.path(RUN_DIR).exists()
        assert files(machine) == before
