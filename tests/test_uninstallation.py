"""What `netplug uninstall` takes away in the kernel, by records and by marks."""

from pathlib import Path

import pytest
from living import Living, a_namespace, settings_in

from netplug.config import Settings
from netplug.daemon.lock import Held, lock_file
from netplug.daemon.uninstallation import Removal, Uninstallation
from netplug.errors import NetplugError
from netplug.kernel.api import HostKernel
from netplug.kernel.fake.kernel import FakeKernel

NETNS = "/run/netns/lab"


class Host:
    """A host whose daemon has made a network with a namespace in it, and the names of the host; it does not run now."""

    def __init__(self, folder: Path) -> None:
        self.kernel = FakeKernel()
        self.namespace = a_namespace()
        self.settings: Settings = settings_in(folder)
        self.before = self.look()
        daemon = Living(self.settings, kernel=self.kernel, namespace=self.namespace).start()
        daemon.client.post("networks", body={"name": "blue", "subnets": [{"subnet": "10.20.0.0/24"}]})
        daemon.client.post("attach", body={"network": "blue", "netns": NETNS, "ifname": "eth0", "name": "web"})
        daemon.client.post("dns", "host")
        daemon.stop()

    def look(self) -> list[str]:
        """Return what is in the kernel; forwarding was on before, and settings of links go with these."""
        return [line for line in self.kernel.dump().splitlines() if not line.startswith("sysctl")]

    async def _open(self) -> HostKernel:
        return self.kernel

    async def uninstall(self, *, force: bool = False) -> Removal:
        locks = self.settings.run_dir / "locks"
        return await Uninstallation(
            self.settings, force=force, kernel=self._open, namespace=self.namespace, locks=locks
        ).run()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_attached_container_is_named_and_nothing_is_changed(host: Host) -> None:
    there = host.look()
    with pytest.raises(NetplugError, match="1 container is attached and would lose their network: web"):
        await host.uninstall()
    assert host.look() == there


async def test_container_that_ended_while_no_daemon_ran_is_not_in_the_way(host: Host) -> None:
    host.kernel.vanish(NETNS)
    assert await host.uninstall() == Removal(networks=("blue",))
    assert host.look() == host.before


async def test_forced_all_goes_and_records_stay(host: Host) -> None:
    assert await host.uninstall(force=True) == Removal(networks=("blue",))
    assert host.look() == host.before
    assert host.kernel.resolution.known == {}
    assert await host.uninstall() == Removal(networks=("blue",))
    daemon = Living(host.settings, kernel=host.kernel, namespace=host.namespace).start()
    assert [it["name"] for it in daemon.client.get("networks")["networks"]] == ["blue"]
    assert daemon.client.get("diff")["differences"] == []
    assert not daemon.client.get("dns", "host")["on"]
    daemon.stop()


async def test_without_records_marks_say_what_goes(host: Host) -> None:
    host.settings.database.unlink()
    assert await host.uninstall() == Removal()
    assert host.look() == host.before


async def test_what_cannot_be_removed_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(steps: object) -> None:
        raise ExceptionGroup("some objects could not be removed", [OSError("busy")])

    monkeypatch.setattr(host.kernel, "remove", refuse)
    assert "link/npi-names" in (await host.uninstall(force=True)).left


async def test_resolver_that_does_not_forget_stops_nothing_else(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise NetplugError("unavailable", "resolvconf -d failed")

    monkeypatch.setattr(host.kernel.resolution, "forget", refuse)
    assert (await host.uninstall(force=True)).left == ("names of the host (resolvconf -d failed)",)
    assert host.look() == host.before


async def test_running_daemon_is_waited_for_and_then_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netplug.daemon.uninstallation.PATIENCE_S", 0.2)
    with lock_file(host.settings.state_dir / "lock"), pytest.raises(Held, match="is in use by"):
        await host.uninstall(force=True)
