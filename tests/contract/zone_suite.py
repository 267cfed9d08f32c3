"""What every kernel must do about firewalld's zone of our links."""

from typing import Protocol

import pytest

from netplug.drivers.zones import Zone
from netplug.kernel.api import HostKernel, Outcome, StepError

ALL, OWN = Zone("np-+"), Zone("br7")
REFUSED = Zone("b" * 20)
"""No link can have this name."""


class Firewalld(Protocol):
    """firewalld beside the kernel, and what its administrator does."""

    def choose(self, link: str, zone: str) -> None:
        """Put a link into another zone."""

    def forget(self, link: str) -> None:
        """Take a link out of our zone."""

    def lose_bus(self) -> None: ...
    def end(self) -> None: ...


@pytest.mark.usefixtures("firewalld")
class ZoneSuite:
    async def test_link_is_put_into_the_zone_and_out_of_it(self, kernel: HostKernel) -> None:
        assert [it.what for it in await kernel.drift((ALL, OWN))] == ["missing", "missing"]
        assert await kernel.ensure((ALL,)) == [Outcome.CREATED]
        assert await kernel.ensure((ALL, OWN)) == [Outcome.EQUAL, Outcome.CREATED]
        assert await kernel.drift((ALL, OWN)) == []
        found = (await kernel.facts()).firewalld
        assert found
        assert found.zones == (("br7", "netplug"), ("np-+", "netplug"))
        assert found.trusted == {"br7", "np-+"}
        await kernel.remove((OWN,))
        assert [it.step for it in await kernel.drift((ALL, OWN))] == [OWN]
        await kernel.remove((ALL, OWN))
        assert [it.step for it in await kernel.drift((ALL, OWN))] == [ALL, OWN]

    async def test_link_taken_out_of_the_zone_comes_back(self, kernel: HostKernel, firewalld: Firewalld) -> None:
        await kernel.ensure((ALL,))
        firewalld.forget("np-+")
        assert [it.what for it in await kernel.drift((ALL,))] == ["missing"]
        assert await kernel.ensure((ALL,)) == [Outcome.CREATED]
        assert await kernel.drift((ALL,)) == []

    async def test_link_in_another_zone_stays_there(self, kernel: HostKernel, firewalld: Firewalld) -> None:
        firewalld.choose("br7", "dmz")
        assert await kernel.drift((OWN,)) == []
        assert await kernel.ensure((OWN,)) == [Outcome.EQUAL]
        await kernel.remove((OWN,))
        found = (await kernel.facts()).firewalld
        assert found
        assert (found.zone("br7"), found.zone("np-+"), found.trusted) == ("dmz", "", frozenset())

    async def test_zone_of_all_such_links_covers_one(self, kernel: HostKernel, firewalld: Firewalld) -> None:
        firewalld.choose("br+", "dmz")
        assert await kernel.drift((OWN, ALL)) == [(await kernel.drift((ALL,)))[0]]

    async def test_without_a_message_bus_the_command_is_said(self, kernel: HostKernel, firewalld: Firewalld) -> None:
        firewalld.lose_bus()
        assert await kernel.ensure((ALL,)) == [Outcome.EQUAL]
        (drift,) = await kernel.drift((ALL,))
        assert drift.what.startswith("missing: there is no message bus")
        command = "firewall-cmd --permanent --zone=trusted --add-interface=np-+ && firewall-cmd --reload"
        assert drift.what.endswith(f": {command}")
        await kernel.remove((ALL,))

    async def test_refusal_is_told_in_words(self, kernel: HostKernel) -> None:
        with pytest.raises(StepError, match=r"firewalld does not take b+ into its zone 'netplug': INVALID_") as error:
            await kernel.ensure((REFUSED,))
        assert error.value.hint.startswith("firewall-cmd ")
        assert [it.what for it in await kernel.drift((REFUSED,))] == ["missing"]

    async def test_where_no_firewalld_runs_there_is_nothing_to_do(
        self, kernel: HostKernel, firewalld: Firewalld
    ) -> None:
        firewalld.end()
        assert await kernel.drift((ALL,)) == []
        assert await kernel.ensure((ALL,)) == [Outcome.EQUAL]
        await kernel.remove((ALL,))
