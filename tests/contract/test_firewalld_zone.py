"""The zone of our links, with a real firewalld."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytest.register_assert_rewrite("linux_host", "zone_suite")

from firewalld_process import FirewalldProcess, needs_firewalld  # noqa: E402
from linux_host import LinuxHost, LinuxSurroundings, run  # noqa: E402
from zone_suite import ALL, OWN, REFUSED, ZoneSuite  # noqa: E402

from netplug.kernel.api import Outcome, StepError  # noqa: E402
from netplug.kernel.firewall import zones  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402


@needs_firewalld
class TestZone(LinuxHost, ZoneSuite):
    @pytest.fixture
    def firewalld(
        self,
        around: LinuxSurroundings,  # noqa: ARG002 - in its namespace
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Iterator[FirewalldProcess]:
        found = FirewalldProcess(tmp_path)
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", found.address)
        monkeypatch.setattr(zones, "FILE", found.zones / "netplug.xml")
        yield found
        found.close()

    async def test_zone_is_there_as_long_as_it_has_links(
        self, kernel: LinuxKernel, firewalld: FirewalldProcess
    ) -> None:
        await kernel.ensure((ALL, OWN))
        for permanent in ((), ("--permanent",)):
            assert set(firewalld.command(*permanent, "--zone=netplug", "--list-interfaces").split()) == {"br7", "np-+"}
            assert firewalld.command(*permanent, "--zone=netplug", "--query-forward") == "yes"
        assert firewalld.command("--permanent", "--zone=netplug", "--get-target") == "ACCEPT"
        await kernel.remove((OWN,))
        assert firewalld.command("--zone=netplug", "--list-interfaces") == "np-+"
        await kernel.remove((ALL,))
        assert not zones.FILE.exists()
        assert "netplug" not in firewalld.command("--permanent", "--get-zones").split()
        assert "netplug" not in firewalld.command("--get-active-zones")
        firewalld.command("--zone=public", "--add-port=81/tcp")
        assert await kernel.ensure((ALL,)) == [Outcome.CREATED]
        # It still knew the zone: what only the running firewalld was told is kept.
        assert firewalld.command("--zone=public", "--list-ports") == "81/tcp"

    async def test_survives_reload_and_restart(self, kernel: LinuxKernel, firewalld: FirewalldProcess) -> None:
        await kernel.ensure((ALL, OWN))
        firewalld.command("--reload")
        assert await kernel.drift((ALL, OWN)) == []
        firewalld.end()
        assert (await kernel.facts()).firewalld is None
        assert await kernel.drift((ALL, OWN)) == []
        assert await kernel.ensure((ALL, OWN)) == [Outcome.EQUAL] * 2
        firewalld.start()
        assert await kernel.drift((ALL, OWN)) == []

    async def test_zone_that_was_deleted_is_made_anew(self, kernel: LinuxKernel, firewalld: FirewalldProcess) -> None:
        await kernel.ensure((ALL,))
        firewalld.command("--permanent", "--delete-zone=netplug")
        firewalld.command("--reload")
        assert [it.what for it in await kernel.drift((ALL,))] == ["missing"]
        assert await kernel.ensure((ALL,)) == [Outcome.CREATED]
        assert await kernel.drift((ALL,)) == []

    async def test_removed_while_firewalld_is_stopped(self, kernel: LinuxKernel, firewalld: FirewalldProcess) -> None:
        await kernel.ensure((ALL, OWN))
        firewalld.end()
        await kernel.remove((OWN,))
        assert "br7" not in zones.FILE.read_text()
        assert "np-+" in zones.FILE.read_text()
        await kernel.remove((ALL,))
        assert not zones.FILE.exists()
        firewalld.start()
        assert "netplug" not in firewalld.command("--get-zones").split()

    async def test_what_waits_for_a_reload_is_waited_for(
        self, kernel: LinuxKernel, firewalld: FirewalldProcess
    ) -> None:
        firewalld.command("--permanent", "--zone=dmz", "--add-interface=br7")
        assert [it.what for it in await kernel.drift((OWN,))] == ["missing"]
        assert await kernel.ensure((OWN,)) == [Outcome.EQUAL]
        (drift,) = await kernel.drift((OWN,))
        assert "permanent configuration has br7 in zone 'dmz'" in drift.what
        firewalld.command("--reload")
        assert await kernel.drift((OWN,)) == []

    async def test_zone_of_this_name_that_is_not_ours_stays(
        self, kernel: LinuxKernel, firewalld: FirewalldProcess
    ) -> None:
        firewalld.command("--permanent", "--new-zone=netplug")
        before = zones.FILE.read_text()
        assert await kernel.ensure((ALL,)) == [Outcome.CREATED]
        assert firewalld.command("--zone=netplug", "--list-interfaces") == "np-+"
        facts = (await kernel.facts()).firewalld
        assert facts
        assert (facts.zone("np-+"), facts.trusted) == ("netplug", frozenset())
        await kernel.remove((ALL,))
        assert zones.FILE.read_text() == before
        assert firewalld.command("--zone=netplug", "--list-interfaces") == ""

    async def test_former_zone_of_this_name_is_not_taken_for_ours(
        self, kernel: LinuxKernel, firewalld: FirewalldProcess
    ) -> None:
        firewalld.command("--permanent", "--new-zone=netplug")
        firewalld.command("--reload")
        firewalld.command("--permanent", "--delete-zone=netplug")
        assert await kernel.ensure((ALL,)) == [Outcome.CREATED]
        found = (await kernel.facts()).firewalld
        assert found
        assert found.trusted == {"np-+"}

    async def test_what_others_added_to_our_zone_stays(self, kernel: LinuxKernel, firewalld: FirewalldProcess) -> None:
        await kernel.ensure((ALL,))
        firewalld.command("--permanent", "--zone=netplug", "--add-interface=eth9")
        await kernel.remove((ALL,))
        assert firewalld.command("--permanent", "--zone=netplug", "--list-interfaces") == "eth9"

    async def test_hanging_firewalld_is_waited_for_once(
        self, kernel: LinuxKernel, firewalld: FirewalldProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(zones, "_ANSWER_S", 0.3)
        firewalld.process.send_signal(signal.SIGSTOP)
        assert await kernel.ensure((ALL,)) == [Outcome.EQUAL]
        (drift,) = await kernel.drift((ALL,))
        assert "firewalld does not answer" in drift.what
        monkeypatch.setattr(zones, "_ANSWER_S", 60)
        assert await kernel.ensure((ALL,)) == [Outcome.EQUAL]
        firewalld.process.send_signal(signal.SIGCONT)

    async def test_refusal_leaves_no_zone(self, kernel: LinuxKernel, firewalld: FirewalldProcess) -> None:
        with pytest.raises(StepError):
            await kernel.ensure((REFUSED,))
        assert "netplug" not in firewalld.command("--permanent", "--get-zones").split()

    async def test_flushed_rules_keep_no_zone(self, kernel: LinuxKernel, firewalld: FirewalldProcess) -> None:
        await kernel.ensure((ALL,))
        run("nft", "flush", "ruleset")
        assert await kernel.drift((ALL,)) == []
        await kernel.remove((ALL,))
        assert not zones.FILE.exists()
        firewalld.end()
        firewalld.start()
        assert await kernel.ensure((ALL,)) == [Outcome.CREATED]
        assert await kernel.drift((ALL,)) == []
