"""The harness's machines with systemd: what they start, keep and forget, and that they are worlds of their own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Booted, ServiceDockerd, unbootable, wait_until

from netplug.lab.image import IMAGE

pytestmark = pytest.mark.skipif(bool(unbootable()), reason=unbootable())

HELLO = """[Unit]
Description=says hello

[Service]
ExecStart=/bin/sh -c 'echo hello from $$(cat /etc/greeting); exec sleep infinity'
Restart=on-failure
RestartSec=0.1
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    """A machine that starts `hello.service` at its boot."""
    with Booted("greeter") as it:
        it.write("/etc/systemd/system/hello.service", HELLO)
        it.write("/etc/greeting", "the root folder\n")
        it.enable("hello.service")
        assert it.boot() == "running"
        yield it


def says(machine: Booted, words: str) -> None:
    """Wait until the service has said something: a simple service has started before its program runs."""
    wait_until(lambda: words in machine.journal("hello.service"), what=words)


def test_systemd_is_process_1_and_starts_what_is_enabled(machine: Booted) -> None:
    assert machine.output("cat", "/proc/1/comm") == "systemd"
    assert machine.output("hostname") == machine.name
    assert machine.output("systemd-detect-virt", "--container") == "container-other"
    assert machine.show("hello.service", "ActiveState", "Description") == {
        "ActiveState": "active",
        "Description": "says hello",
    }
    says(machine, "hello from the")
    assert machine.systemctl("--failed", "--no-legend") == ""


def test_service_that_dies_is_restarted(machine: Booted) -> None:
    before = machine.show("hello.service", "MainPID")["MainPID"]
    machine.systemctl("kill", "--signal=SIGKILL", "hello.service")
    wait_until(lambda: machine.show("hello.service", "MainPID")["MainPID"] not in {before, "0"}, what="a new process")


def test_reboot_keeps_files_and_forgets_network_run_and_tmp(machine: Booted) -> None:
    machine.write("/etc/greeting", "the boot before\n")
    machine.run(["touch", "/run/mark", "/tmp/mark"])
    machine.run(["ip", "link", "add", "mark0", "type", "bridge"])
    identity = machine.output("cat", "/etc/machine-id")
    assert machine.reboot() == "running"
    says(machine, "hello from the boot before")
    assert machine.output("cat", "/etc/machine-id") == identity
    assert machine.output("sh", "-c", "ls /run/mark /tmp/mark 2>/dev/null; true") == ""
    assert [it["ifname"] for it in json.loads(machine.output("ip", "-j", "link"))] == ["lo"]


def test_machine_is_a_world_of_its_own(machine: Booted) -> None:
    assert not Path("/etc/systemd/system/hello.service").exists()
    assert not Path("/etc/greeting").exists()
    own = [line for line in Path("/proc/self/mounts").read_text().splitlines() if machine.name in line]
    assert own == []
    assert int(machine.output("sh", "-c", "ls -d /proc/[0-9]* | wc -l")) < 30
    assert not machine.path("/dev/kmsg").exists()


def test_power_can_be_cut(machine: Booted) -> None:
    machine.write("/etc/greeting", "the boot that ended\n")
    machine.cut()
    assert not machine.on
    assert machine.path("/etc/greeting").read_text() == "the boot that ended\n"
    assert machine.boot() == "running"


@pytest.mark.skipif(not Path("/lib/systemd/system/docker.service").exists(), reason="needs docker.io (make setup)")
def test_engine_runs_as_its_own_service() -> None:
    with Booted("engine") as machine:
        machine.enable("docker.service")
        assert machine.boot() == "running"
        docker = ServiceDockerd(machine)
        assert docker.docker("run", "--rm", IMAGE, "echo", "works") == "works"
        docker.run("--name", "stays", "--restart", "always")
        assert machine.reboot() == "running"
        wait_until(lambda: docker.docker("ps", "--format", "{{.Names}}") == "stays", what="the container runs again")
        assert "docker.service" in machine.systemctl("list-units", "--state=active")
