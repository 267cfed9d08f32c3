"""Nothing but the entry points knows what a mode is called: all goes on with other names, by what drivers declare."""

import pytest
from engine_host import NET

from netplug.drivers.api import Firewalld, HostFacts, Network, Scope
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.errors import DriverError
from netplug.drivers.ipam_only import LeasingDriver
from netplug.drivers.macvlan import MacvlanDriver
from netplug.drivers.none import NoneDriver
from netplug.drivers.overlay import OverlayDriver
from netplug.drivers.registry import Drivers
from netplug.engine import Engine
from netplug.engine.firewalld import blocked
from netplug.errors import NetplugError
from netplug.frontends.cni.config import translate, translate_ipam
from netplug.frontends.cni.wire import Call, Request, read
from netplug.frontends.netavark import NetworkIn as Podmans
from netplug.frontends.rest.wire import NetworkIn
from netplug.ipam.allocator import Allocator
from netplug.ipam.spaces import default_spaces, ula
from netplug.kernel.fake.kernel import FakeKernel
from netplug.store.leases import StoredLeases
from netplug.store.sqlite import SqliteStore

RENAMED = Drivers(
    {
        "addresses": LeasingDriver(),
        "fabric": OverlayDriver(),
        "nothing": NoneDriver(),
        "segment": MacvlanDriver(),
        "switch": BridgeDriver(),
    }
)
CNI = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/a", "CNI_IFNAME": "eth0"}


def request(text: str) -> Request:
    return read(Call("pynet", CNI, text.encode()))


def test_default_modes_are_those_of_drivers_that_say_so() -> None:
    assert RENAMED.parse({}).mode == "switch"
    assert RENAMED.default(Scope.CLUSTER) == "fabric"
    assert NetworkIn(name="blue", cluster=True).to_spec(RENAMED).options == {"mode": "fabric"}


def test_networks_without_addresses_get_no_subnet() -> None:
    assert len(NetworkIn(name="blue").to_spec(RENAMED).subnets) == 1
    assert NetworkIn(name="blue", options={"mode": "nothing"}).to_spec(RENAMED).subnets == ()


@pytest.mark.parametrize(("options", "key"), [({}, "bridge"), ({"mode": "segment"}, "parent")])
def test_interface_that_podman_names_is_what_the_driver_takes(options: dict[str, str], key: str) -> None:
    told = Podmans(name="blue", id=NET, driver="pynet", network_interface="x0", options=options)
    assert told.to_spec(RENAMED).options[key] == "x0"


def test_cni_configurations_find_their_modes_by_what_they_want() -> None:
    macvlan = translate(request('{"cniVersion":"1.0.0","name":"lan","type":"pynet","master":"eth1"}'), RENAMED)
    assert macvlan.network.options["mode"] == "segment"
    plain = translate(request('{"cniVersion":"1.0.0","name":"blue","type":"pynet"}'), RENAMED)
    assert len(plain.network.subnets) == 1
    leased = translate_ipam(request('{"cniVersion":"1.0.0","name":"blue","type":"x","ipam":{"type":"pynet"}}'), RENAMED)
    assert leased.network.options == {"mode": "addresses"}


def test_ports_that_hosts_need_open_are_those_of_drivers_over_hosts() -> None:
    facts = HostFacts(firewalld=Firewalld((("np-+", "trusted"),), trusted=frozenset({"np-+"})))
    networks = [Network(NET, "blue", options=RENAMED.parse({"mode": mode})) for mode in ("switch", "fabric")]
    (found,) = blocked(facts, networks, RENAMED)
    assert "--add-port=4789/udp" in found.what


async def test_engine_builds_networks_of_any_name() -> None:
    kernel, store = FakeKernel(), await SqliteStore.open(":memory:")
    allocator = Allocator(StoredLeases(store), default_spaces(ula(b"tests")))
    engine = Engine(kernel, store, allocator, RENAMED)
    made = await engine.networks.create(NetworkIn(name="blue").to_spec(RENAMED))
    empty = await engine.networks.create(NetworkIn(name="red", options={"mode": "nothing"}).to_spec(RENAMED))
    assert [made.network.options.mode, empty.network.options.mode] == ["switch", "nothing"]
    wanted = NetworkIn(name="green", options={"mode": "nothing"}, ipv6=True).to_spec(RENAMED)
    with pytest.raises(NetplugError, match="has no addresses"):
        await engine.networks.create(wanted)
    with pytest.raises(DriverError, match="must be one of fabric, nothing, segment, switch"):
        await engine.networks.create(NetworkIn(name="green", options={"mode": "bridge"}).to_spec(RENAMED))
    await store.close()
