"""Leases of a DHCP server, by a plugin that answers as the reference one does."""

import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_host import Host

from netplug.frontends.cni.dhcp import dhcp_leases
from netplug.frontends.cni.service import CniService
from netplug.frontends.cni.wire import Call

PLUGIN = """#!/bin/sh
cd {folder}
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS" >>calls
cat >config
cat answer
exit $(cat code)
"""
NETNS = "/run/netns/box"
DAEMON = """
import contextlib, socket, sys
listening = socket.socket(fileno=int(sys.argv[1]))
while True:
    with listening.accept()[0] as connection, contextlib.suppress(BrokenPipeError):
        assert connection.recv(1024).startswith(b"CONNECT /_goRPC_ HTTP/1.0\\r\\n")
        connection.sendall(b"HTTP/1.0 200 Connected to Go RPC\\n\\n")
        connection.recv(1)
"""


class Site:
    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        (folder / "dhcp").write_text(PLUGIN.format(folder=folder))
        (folder / "dhcp").chmod(0o755)
        self.ipam = {"type": "dhcp", "daemonSocketPath": str(folder / "sock")}
        self.leases = dhcp_leases(host.engine)
        self.begin()
        self.says(ips=[{"address": "10.1.0.7/24", "gateway": "10.1.0.1"}])

    def begin(self) -> None:
        """Have the plugin's daemon begin anew."""
        (self.folder / "sock").unlink(missing_ok=True)
        (self.folder / "sock").touch()

    @contextmanager
    def activated(self) -> Iterator[socket.socket]:
        """Listen in place of the plugin's daemon, as systemd does."""
        (self.folder / "sock").unlink()
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.folder / "sock"))
            listening.listen()
            yield listening

    def says(self, ends: int = 0, **answer: Any) -> None:
        (self.folder / "answer").write_text(json.dumps({"cniVersion": "1.0.0", **answer}))
        (self.folder / "code").write_text(str(ends))

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    async def call(self, command: str, service: CniService | None = None) -> dict[str, Any]:
        env = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c", "CNI_NETNS": NETNS, "CNI_IFNAME": "eth0"}
        config = {"cniVersion": "1.0.0", "name": "blue", "type": "pynet", "ipam": self.ipam}
        call = Call("pynet", env | {"CNI_PATH": str(self.folder)}, json.dumps(config).encode())
        reply = await (service or CniService(self.host.engine)).answer(call)
        answer: dict[str, Any] = json.loads(reply.stdout) if reply.stdout else {}
        return answer

    async def wrong(self) -> list[str]:
        await self.leases.look()
        return [one.what for one in self.host.engine.conditions.all()]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    host = await Host.boot()
    yield Site(host, tmp_path)
    await host.check()
    await host.close()


async def test_lease_is_asked_for_again_also_after_a_restart(site: Site) -> None:
    assert (await site.call("ADD"))["ips"][0]["address"] == "10.1.0.7/24"
    assert await site.wrong() == []
    assert await site.wrong() == []
    assert site.calls() == [f"ADD c eth0 {NETNS}"] * 2  # nobody knew that it was asked for
    site.begin()
    assert await site.wrong() == []
    assert await site.wrong() == []
    await site.host.reboot()
    site.leases = dhcp_leases(site.host.engine)
    assert await site.wrong() == []
    assert site.calls() == [f"ADD c eth0 {NETNS}"] * 4
    assert json.loads((site.folder / "config").read_text())["ipam"] == site.ipam
    await site.call("DEL")
    assert await site.wrong() == []
    assert len(site.calls()) == 5


async def test_lease_that_cannot_be_kept_is_told_until_it_is(site: Site) -> None:
    await site.call("ADD")
    site.says(1, code=999, msg="error calling DHCP.Allocate: no more tries")
    (said,) = await site.wrong()
    assert said.startswith("the lease of 10.1.0.7 is not kept: no DHCP server answers by eth0 on network 'blue'")
    site.says(ips=[{"address": "10.1.0.7/24"}])
    assert await site.wrong() == []
    await site.call("DEL")


@pytest.mark.parametrize(
    "said",
    [
        "{",
        "7",
        "[]",
        "{}",
        '{"name": "a", "env": 7, "config": {}}',
        "[" * 100_000,
        '{"name": 1, "env": [], "config": []}',
    ],
)
async def test_record_without_a_lease_to_ask_for_is_told(site: Site, said: str) -> None:
    await site.call("ADD")
    (record,) = site.host.endpoints()
    await site.host.engine.registry.save(replace(record, ipam=said))
    (told,) = await site.wrong()
    assert told.startswith("the lease of 10.1.0.7 is not kept: ")
    await site.host.engine.registry.save(record)
    assert await site.wrong() == []
    await site.call("DEL")


async def test_changed_address_is_told_and_not_asked_for_again(site: Site) -> None:
    await site.call("ADD")
    site.says(ips=[{"address": "10.1.0.9/24"}])
    told = ["the DHCP server gives 10.1.0.9 now; the container has 10.1.0.7 until it is started anew"]
    assert await site.wrong() == told
    assert await site.wrong() == told
    assert len(site.calls()) == 2
    site.begin()
    assert await site.wrong() == told
    assert len(site.calls()) == 3
    site.begin()
    site.says(ips=[{"address": "10.1.0.7/24"}])
    assert await site.wrong() == []
    assert await site.wrong() == []
    assert len(site.calls()) == 4
    await site.call("DEL")
    assert await site.wrong() == []


async def test_container_that_is_started_anew_has_the_changed_address(site: Site) -> None:
    await site.call("ADD")
    site.says(ips=[{"address": "10.1.0.9/24"}])
    service = CniService(site.host.engine)
    site.leases = service.leases
    assert len(await site.wrong()) == 1
    await site.call("DEL", service)
    await site.call("ADD", service)
    assert await site.wrong() == []
    assert len(site.calls()) == 4  # ADD, asked for again, DEL, ADD
    await site.call("DEL", service)


async def test_server_that_does_not_answer_is_named(site: Site) -> None:
    site.says(1, code=999, msg="error calling DHCP.Allocate: no more tries")
    refused = await site.call("ADD")
    assert (refused["code"], refused["msg"]) == (11, "no DHCP server answers by eth0 on network 'blue'")
    assert site.host.endpoints() == []


async def test_dead_sandbox_asks_for_nothing(site: Site) -> None:
    await site.call("ADD")
    site.host.kernel.vanish(NETNS)
    assert await site.wrong() == []
    assert len(site.calls()) == 1
    await site.call("DEL")


@contextmanager
def daemon(listening: socket.socket) -> Iterator[None]:
    number = listening.fileno()
    with subprocess.Popen([sys.executable, "-c", DAEMON, str(number)], pass_fds=(number,)) as process:
        yield
        process.kill()


async def test_new_daemon_behind_the_socket_of_systemd_is_asked(site: Site) -> None:
    with site.activated() as listening:
        with daemon(listening):
            service = CniService(site.host.engine)
            site.leases = service.leases
            await site.call("ADD", service)
            assert await site.wrong() == []
            assert await site.wrong() == []
            assert len(site.calls()) == 1
        with daemon(listening):
            assert await site.wrong() == []
            assert await site.wrong() == []
            assert len(site.calls()) == 2
            await site.call("DEL", service)


async def test_daemon_that_hangs_is_told_and_not_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.call("ADD")
    with site.activated() as listening:
        with monkeypatch.context() as patch:
            patch.setattr("netplug.kernel.host.socket_owner.DEADLINE_S", 0.1)
            (said,) = await site.wrong()
        assert said.startswith("the lease of 10.1.0.7 may not be kept: the daemon of the dhcp plugin hangs (")
        assert len(site.calls()) == 1
        with daemon(listening):
            assert await site.wrong() == []
        await site.call("DEL")
