"""NetworkManager is asked over a real message bus, where a stand-in tells what it does."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from firewalld_process import _BUS

from netplug.kernel.host import network_manager

pytestmark = pytest.mark.skipif(not which("dbus-daemon"), reason="needs dbus-daemon")

_START_S = 20
DEVICES = {"np-taken": "/d/1", "np-idle": "/d/2", "np-external": "/d/3", "np-left": "/d/4"}
STAND_IN = """
import asyncio
from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

DEVICES = {devices!r}
ACTIVE = {{"/d/1": "/a/1", "/d/2": "/", "/d/3": "/a/3", "/d/4": "/"}}
FLAGS = {{"/a/1": 4, "/a/3": 0x84}}

def answer(message):
    if message.member == "GetDeviceByIpIface":
        if message.body[0] in DEVICES:
            return Message.new_method_return(message, "o", [DEVICES[message.body[0]]])
        return Message.new_error(message, "org.freedesktop.NetworkManager.UnknownDevice", "no such device")
    if message.member == "Get":
        found = {{
            "Version": Variant("s", "1.42.4"),
            "Managed": Variant("b", message.path != "/d/4"),
            "ActiveConnection": Variant("o", ACTIVE.get(message.path, "/")),
            "StateFlags": Variant("u", FLAGS.get(message.path, 0)),
        }}
        return Message.new_method_return(message, "v", [found[message.body[1]]])

async def main():
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    bus.add_message_handler(answer)
    await bus.request_name("org.freedesktop.NetworkManager")
    print("ready", flush=True)
    await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    address = f"unix:path={tmp_path / 'bus'}"
    (tmp_path / "bus.conf").write_text(_BUS.format(address=address))
    command = ("dbus-daemon", "--nofork", "--nopidfile", f"--config-file={tmp_path / 'bus.conf'}")
    with subprocess.Popen(command) as daemon:
        deadline = time.monotonic() + _START_S
        while not (tmp_path / "bus").exists():
            assert time.monotonic() < deadline, "the message bus did not start"
            time.sleep(0.01)
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        yield address
        daemon.terminate()


@pytest.fixture
def manager(bus: str) -> Iterator[None]:
    command = [sys.executable, "-c", STAND_IN.format(devices=DEVICES)]
    env = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": bus}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield
        process.terminate()


@pytest.mark.usefixtures("manager")
async def test_links_that_it_manages_are_told_from_those_of_others() -> None:
    found = await network_manager.manages([*DEVICES, "np-unknown"])
    assert found == {"np-taken": True, "np-idle": True, "np-external": False, "np-left": False}


async def test_it_is_not_on_the_bus(bus: str) -> None:
    assert bus
    assert await network_manager.manages(["np-taken"]) is None


async def test_there_is_no_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere/bus")
    assert await network_manager.manages(["np-taken"]) is None
