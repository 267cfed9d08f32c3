"""What other hosts tell is brought about, whatever they told before."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from random import Random

import pytest
from engine_host import NET, Host

from netplug.drivers.api import HostFacts, Peer, meshed
from netplug.drivers.naming import bridge_name, vxlan_name
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Element
from netplug.drivers.tunnel import NO_MAC, Fdb, Neighbour
from netplug.drivers.tunnel_tables import accepted, filter_table, of_peers
from netplug.engine.records import FrontEnd
from netplug.errors import NetplugError
from netplug.kernel.api import StepError
from netplug.kernel.fake.kernel import FakeKernel

VTEP = ip_address("192.0.2.1")


def peer(number: int, at: int = 2) -> Peer:
    mac, address = f"02:6e:0a:01:00:{number:02x}", ip_address(f"10.1.0.{number}")
    return Peer(f"{number:064x}", mac, (address,), ip_address(f"192.0.2.{at}"))


ONE, TWO = peer(11), peer(12)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    kernel = FakeKernel()
    kernel.foreign.links["eth0"] = ""
    kernel.foreign.addresses.add(("eth0", ip_interface(f"{VTEP}/24")))
    kernel.foreign.facts = HostFacts(uplink="eth0")
    host = await Host.boot(kernel)
    host.vtep = VTEP
    await host.reboot()
    await host.cli_network("10.1.0.0/24", mode="overlay", vni="4097")
    yield host
    await host.close()


def reached(host: Host) -> set[str]:
    """Return what is in the kernel of peers: VTEPs that may send, where MACs are, who has which address."""
    found = set()
    for step in host.kernel._world.state.values():
        match step:
            case Element(set="vteps4" | "vteps6"):
                assert of_peers(step)
                found.add(f"{step.item.partition(' ')[0]} may send")
            case Fdb():
                found.add(f"{step.mac} is at {step.vtep}")
            case Neighbour():
                found.add(f"{step.address} is {step.mac}")
    return found


def of(*peers: Peer) -> set[str]:
    return {
        words
        for it in peers
        for words in (f"{it.vtep} may send", f"{it.mac} is at {it.vtep}", f"{it.addresses[0]} is {it.mac}")
    }


async def test_just_the_peers_told_last_are_reached(host: Host) -> None:
    for told in ((ONE,), (ONE, TWO), (ONE, TWO), (TWO,), (replace(TWO, vtep=ip_address("192.0.2.3")), ONE), ()):
        assert await host.engine.peers.apply(NET, told) == ()
        assert reached(host) == of(*told)
        await host.check()


async def test_nothing_is_done_for_what_is_known(host: Host) -> None:
    await host.engine.peers.apply(NET, (ONE, TWO))
    host.kernel.calls.clear()
    await host.engine.peers.apply(NET, (ONE, TWO))
    assert host.kernel.calls == []
    await host.engine.peers.apply(NET, (ONE, TWO, peer(13)))
    assert [what for what in host.kernel.calls if what[1]] == [("ensure", 3)]


async def test_who_moved_is_told_of_without_a_gap(host: Host) -> None:
    await host.engine.peers.apply(NET, (ONE,))
    host.kernel.calls.clear()
    await host.engine.peers.apply(NET, (peer(11, at=3),))
    # The new VTEP and the MAC's new place first; the old VTEP after.
    assert host.kernel.calls == [("ensure", 2), ("remove", 1)]
    assert reached(host) == of(peer(11, at=3))


async def test_poisoned_record_is_left_out_and_returned(host: Host) -> None:
    bad = replace(TWO, addresses=(ip_address("10.99.0.1"),))
    assert await host.engine.peers.apply(NET, (ONE, bad)) == (bad,)
    assert reached(host) == of(ONE)
    await host.check()


async def test_failure_is_told_and_the_next_word_tries_again(host: Host) -> None:
    await host.engine.peers.apply(NET, (ONE,))
    host.kernel.fail_at(Fdb(vxlan_name(NET), TWO.mac, TWO.vtep).key)
    with pytest.raises(StepError):
        await host.engine.peers.apply(NET, (ONE, TWO))
    assert reached(host) == of(ONE)
    host.kernel.heal()
    await host.engine.peers.apply(NET, (ONE, TWO))
    assert reached(host) == of(ONE, TWO)
    await host.check()


async def test_what_others_deleted_is_put_back(host: Host) -> None:
    await host.engine.peers.apply(NET, (ONE, TWO))
    host.kernel.lose(f"link/{vxlan_name(NET)}")
    host.kernel.lose(Neighbour(bridge_name(NET), ONE.addresses[0], ONE.mac).key)
    owners = {difference.owner for difference in await host.reconciler.diff()}
    assert owners == {"network blue", "peers of network blue"}
    await host.reconciler.repair()
    assert reached(host) == of(ONE, TWO)
    await host.check()


async def test_after_a_start_entries_stay_until_somebody_tells(host: Host) -> None:
    await host.engine.peers.apply(NET, (ONE, TWO))
    await host.reboot()
    assert await host.reconciler.diff() == []
    await host.reconciler.repair()
    assert reached(host) == of(ONE, TWO)
    host.kernel.changed.clear()
    await host.engine.peers.apply(NET, (TWO,))
    assert host.kernel.changed.is_set()
    await host.reconciler.repair()
    assert reached(host) == of(TWO)
    await host.check()


async def test_entries_of_networks_that_are_gone_are_swept(host: Host) -> None:
    await host.engine.peers.apply(NET, (ONE,))
    await host.engine.networks.delete(NET, by=FrontEnd.CLI)
    assert reached(host) == set()
    await host.kernel.ensure((filter_table(), accepted(ONE.vtep, 4789, 4097)))
    await host.reconciler.repair()
    assert reached(host) == set()


async def test_network_goes_with_all_that_led_to_its_peers(host: Host) -> None:
    before = {line for line in host.dump() if "4097" not in line}
    await host.cli_network("10.2.0.0/24", ident="b2" * 32, name="red", mode="overlay", vni="4098", bum="true")
    far = replace(ONE, addresses=(ip_address("10.2.0.11"),))
    await host.engine.peers.apply("red", (far,))
    await host.engine.peers.apply("blue", (ONE,))
    assert f"{NO_MAC} is at {ONE.vtep}" in reached(host)
    await host.engine.networks.delete("red", by=FrontEnd.CLI)
    assert reached(host) == of(ONE)
    await host.engine.peers.apply("blue", ())
    assert {line for line in host.dump() if "4097" not in line} == before
    assert host.engine.peers.plan("b2" * 32) == Plan()


async def test_network_of_one_host_has_no_peers(host: Host) -> None:
    await host.cli_network("10.3.0.0/24", ident="b3" * 32, name="local")
    with pytest.raises(NetplugError, match="network 'local' of mode 'bridge' has no endpoints on other hosts"):
        await host.engine.peers.apply("local", (ONE,))
    with pytest.raises(NetplugError, match="there is no network 'nowhere'"):
        await host.engine.peers.apply("nowhere", ())


async def test_foreign_vni_is_refused_before_anything_is_made(host: Host) -> None:
    host.kernel.foreign.tunnels["flannel.1"] = (7, 4789)
    before = await host.state()
    with pytest.raises(Exception, match=r"option vni=7: vxlan link 'flannel\.1' of the host uses it on UDP port 4789"):
        await host.cli_network("10.3.0.0/24", ident="b3" * 32, name="other", mode="overlay", vni="7")
    assert await host.state() == before


async def test_overlay_outside_of_a_cluster_is_refused(host: Host) -> None:
    host.vtep = None
    await host.reboot()
    before = await host.state()
    with pytest.raises(Exception, match="mode overlay: this daemon is not part of a cluster"):
        await host.cli_network("10.3.0.0/24", ident="b3" * 32, name="other", mode="overlay", vni="7")
    assert await host.state() == before


async def test_whatever_changes_the_outcome_is_that_of_the_last_word(host: Host) -> None:
    """Peers that share MACs, addresses and VTEPs with one another come, go, move and tell nonsense."""
    choice = Random(7)  # noqa: S311 - no secret
    driver = host.engine.drivers["overlay"]
    assert meshed(driver)
    pool = [
        Peer(
            f"{n:064x}",
            f"02:6e:0a:01:00:{n % 5:02x}",
            (ip_address(f"10.1.0.{10 + n % 7}"),),
            ip_address(f"192.0.2.{2 + n % 3}"),
        )
        for n in range(40)
    ]
    pool += [replace(pool[0], vtep=VTEP), replace(pool[1], addresses=(ip_address("10.99.0.1"),))]
    for mode in ("4097", "4098"):
        if mode == "4098":
            await host.cli_network("10.1.0.0/24", ident=NET, mode="overlay", vni=mode, bum="true")
        told: list[Peer] = []
        for _ in range(150):
            for _ in range(choice.randint(1, 3)):
                one = choice.choice(pool)
                if one in told:
                    told.remove(one)
                if choice.random() < 0.6:
                    told.append(one)
            refused = await host.engine.peers.apply(NET, tuple(told))
            net = host.engine.registry.network(NET).network
            assert set(refused) == {one for one in told if one in pool[40:]}
            wanted = driver.peers(net, [one for one in told if one not in refused])
            assert set(host.engine.peers.plan(NET)) == set({step.key: step for step in wanted}.values())
        await host.check()
        await host.engine.networks.delete(NET, by=FrontEnd.CLI)
