"""Whatever happened to networks and endpoints, kernel and records end where building them afresh would."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from built_in_drivers import DRIVERS
from engine_host import Died, Fuse, Host, external, tcp
from fresh_build import compare_with_a_fresh_build
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from netplug.drivers.api import HostFacts, StaticRoute
from netplug.drivers.errors import DriverError
from netplug.engine.network_updates import NetworkChange
from netplug.engine.records import (
    AttachSpec,
    EndpointRecord,
    EndpointSpec,
    FrontEnd,
    NetworkRecord,
    NetworkSpec,
    SubnetSpec,
)
from netplug.errors import NetplugError
from netplug.ipam.errors import IpamError
from netplug.kernel.fake.kernel import FakeKernel
from netplug.kernel.fake.world import Foreign

DOCKER, CLI, CNI = FrontEnd.DOCKER, FrontEnd.CLI, FrontEnd.CNI
KINDS = {
    "blue": ("bridge", ("10.1.0.0/24",)),
    "red": ("bridge", ("10.2.0.0/24", "fd00:2::/64")),
    "lan": ("macvlan", ("192.168.1.0/24",)),
    "host": ("host", ("10.4.0.0/24",)),
    "none": ("none", ()),
}
IDS = {name: f"{number + 10:x}{number + 1}" * 32 for number, name in enumerate(KINDS)}
NAMES = st.sampled_from(sorted(KINDS))
BOXES = ("one", "two")
OPTIONS = {
    "rate": ("10mbit", "20mbit/5mbit", ""),
    "icc": ("true", "false"),
    "spoofchk": ("true", "false"),
    "masquerade": ("true", "false"),
    "dns": ("on", "off"),
    "ttl": ("9", ""),
    "mtu": ("1300", "1450", ""),
    "gw_priority": ("5", "-3", ""),
    "metric": ("7", ""),
    "host_binding_ipv4": ("127.0.0.1", ""),
    "dns_upstream": ("10.9.9.9", ""),
    "burst": ("64kb", ""),
}
CHANGES = st.sampled_from([(key, value) for key, values in OPTIONS.items() for value in values])
WRONG = (
    {"rate": "fast"},
    {"mtu": "12"},
    {"icc": "perhaps"},
    {"colour": "red"},
    {"mode": "overlay"},
    {"bridge": "br-other"},
    {"ifname": "net"},
    {"parent": "eth9"},
    {"vni": "7"},
    {"rate": "10mbit", "spoofchk": "maybe"},
)
MTUS = st.sampled_from([1400, 1500, 9000])


class ConvergenceMachine(RuleBasedStateMachine):
    @initialize(by=st.sampled_from([DOCKER, CLI]))
    def start(self, by: FrontEnd) -> None:
        self.runner = asyncio.Runner()
        facts = HostFacts(mtu=1500, uplink="eth0")
        self.host = self.run(Host.boot(FakeKernel(Foreign(links={"eth0": ""}, facts=facts))))
        for name in ("blue", "red"):
            self.run(self.creation(name, by, {}))
            for box in BOXES:
                self.run(self.plugging(name, box, CLI, given=False))

    def teardown(self) -> None:
        if not hasattr(self, "host"):
            return
        try:
            self.run(self.follow_facts(uplink="eth0"))
            self.run(self.host.check())
            self.run(compare_with_a_fresh_build(self.host))
        finally:
            self.run(self.host.close())
            self.runner.close()

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    # What there is

    def network(self, name: str) -> NetworkRecord | None:
        return self.host.engine.registry.find_network(IDS[name])

    def chosen(self, data: st.DataObject, fits: Callable[[EndpointRecord], bool] = bool) -> EndpointRecord | None:
        found = sorted((it for it in self.host.endpoints() if fits(it)), key=lambda it: it.key)
        return found[data.draw(st.integers(0, len(found) - 1))] if found else None

    def present(self, data: st.DataObject) -> str:
        """Return a network; empty: there is none."""
        found = [name for name in KINDS if self.network(name)]
        return found[data.draw(st.integers(0, len(found) - 1))] if found else ""

    # Networks

    def creation(self, name: str, by: FrontEnd, options: dict[str, str]) -> Awaitable[object]:
        mode, pools = KINDS[name]
        by = by if mode in {"bridge", "macvlan"} else CLI
        subnets = tuple(external(pool) if by is DOCKER else SubnetSpec(ip_network(pool)) for pool in pools)
        options = {**options, "mode": mode, **({"parent": "eth0"} if mode == "macvlan" else {})}
        return self.host.engine.networks.create(NetworkSpec(IDS[name], name, options, subnets, front_end=by))

    @rule(name=NAMES, by=st.sampled_from([DOCKER, CLI]), mtu=st.booleans())
    def create_network(self, name: str, by: FrontEnd, *, mtu: bool) -> None:
        if self.network(name) is None:
            self.run(self.creation(name, by, {"mtu": "1350"} if mtu else {}))

    @rule(name=st.sampled_from(["lan", "host", "none", "red"]))
    def delete_network(self, name: str) -> None:
        record = self.network(name)
        if record and (record.front_end is DOCKER or not self.host.engine.registry.endpoints(IDS[name])):
            self.run(self.host.engine.networks.delete(name, by=record.front_end))

    # Updates

    def update(self, name: str, change: NetworkChange) -> Awaitable[object]:
        return self.host.engine.network_updates.update(IDS[name], change)

    def refused(self, name: str, change: NetworkChange) -> None:
        before = self.run(self.host.state())
        with pytest.raises((NetplugError, DriverError)) as caught:
            self.run(self.update(name, change))
        assert caught.value.kind in {"invalid", "forbidden", "unavailable"}, caught.value
        assert self.run(self.host.state()) == before

    @rule(data=st.data(), changes=st.lists(CHANGES, min_size=1, max_size=4))
    def update_options(self, data: st.DataObject, changes: list[tuple[str, str]]) -> None:
        if not (name := self.present(data)):
            return
        record, options = self.host.engine.registry.network(IDS[name]), dict(changes)
        if not _fits(record, options):
            self.refused(name, NetworkChange(options))
            options = {key: value for key, value in options.items() if _fits(record, {key: value})}
        self.run(self.update(name, NetworkChange(options)))
        raw = self.host.engine.registry.network(IDS[name]).options
        assert {key: raw.get(key, "") for key in options} == options

    @rule(data=st.data(), internal=st.booleans())
    def update_internal(self, data: st.DataObject, *, internal: bool) -> None:
        if name := self.present(data):
            self.run(self.update(name, NetworkChange(internal=internal)))

    @rule(data=st.data(), options=st.sampled_from(WRONG))
    def update_wrongly(self, data: st.DataObject, options: dict[str, str]) -> None:
        if name := self.present(data):
            self.refused(name, NetworkChange(options))

    @rule(data=st.data(), changes=st.lists(CHANGES, min_size=1, max_size=3))
    def try_an_update(self, data: st.DataObject, changes: list[tuple[str, str]]) -> None:
        if name := self.present(data):
            before = self.run(self.host.state())
            with suppress(DriverError):
                self.run(self.host.engine.network_updates.update(IDS[name], NetworkChange(dict(changes)), dry_run=True))
            assert self.run(self.host.state()) == before

    @rule(name=st.sampled_from(["blue", "red"]), number=st.integers(1, 2), remove=st.booleans())
    def update_subnets(self, name: str, number: int, *, remove: bool) -> None:
        record, pool = self.network(name), ip_network(f"10.{20 + number}.{ord(name[0])}.0/24")
        if record is None or record.front_end is DOCKER:
            return
        have = {subnet.pool for subnet in record.network.subnets}
        used = any(
            address in pool
            for it in self.host.engine.registry.endpoints(IDS[name])
            for address in it.endpoint.addresses
        )
        change = NetworkChange(remove=(pool,)) if remove else NetworkChange(add=(SubnetSpec(pool),))
        if remove and (pool not in have or used):
            with pytest.raises(NetplugError):
                self.run(self.update(name, change))
        elif remove or pool not in have:
            self.run(self.update(name, change))

    @rule(data=st.data(), changes=st.lists(CHANGES, min_size=1, max_size=4), mtu=MTUS)
    def update_of_a_host_that_changes(self, data: st.DataObject, changes: list[tuple[str, str]], mtu: int) -> None:
        """The facts change, and the update comes before anything follows them."""
        foreign = self.host.kernel.foreign
        foreign.facts = replace(foreign.facts, mtu=mtu, bridge_netfilter=not foreign.facts.bridge_netfilter)
        if name := self.present(data):
            with suppress(DriverError):
                self.run(self.update(name, NetworkChange(dict(changes))))
        self.run(self.follow_facts())

    # Endpoints

    def plugging(self, name: str, box: str, by: FrontEnd, *, given: bool) -> Awaitable[object]:
        record = self.network(name)
        assert record is not None
        number = BOXES.index(box)
        if record.front_end is DOCKER:
            addresses = tuple(_interface(subnet.pool, 10 + number) for subnet in record.network.subnets)
            spec = EndpointSpec(f"{IDS[name][:2]}{number + 1}e" * 16, IDS[name], addresses, ports=(_port(name, box),))
            return self.host.engine.endpoints.create(spec)
        linked = KINDS[name][0] != "none"
        ways = [subnet.gateway.ip for subnet in record.network.subnets if subnet.gateway]
        routes = tuple(StaticRoute(ip_network("0.0.0.0/0" if it.version == 4 else "::/0"), it) for it in ways[:1])
        return self.host.engine.endpoints.attach(
            AttachSpec(
                name,
                box,
                f"eth-{name}",
                ports=(_port(name, box),) if KINDS[name][0] == "bridge" and not record.network.internal else (),
                front_end=by if linked else CLI,
                routes=routes if given and by is CNI and linked else None,
            )
        )

    @rule(name=NAMES, box=st.sampled_from(BOXES), by=st.sampled_from([CLI, CNI]), given=st.booleans())
    def plug_in(self, name: str, box: str, by: FrontEnd, *, given: bool) -> None:
        self.plug(name, box, by, given=given)

    def plug(self, name: str, box: str, by: FrontEnd, *, given: bool) -> None:
        if self.network(name):
            with suppress(NetplugError, DriverError, IpamError):
                self.run(self.plugging(name, box, by, given=given))

    @rule(data=st.data())
    def join_and_publish(self, data: st.DataObject) -> None:
        record = self.chosen(data, lambda it: it.front_end is DOCKER)
        if record:
            ident, network = record.endpoint.id, record.endpoint.network
            sandbox = f"/run/docker/netns/{ident[:3]}"
            self.host.kernel.inhabitants.add(sandbox)
            self.run(self.host.engine.endpoints.join(network, ident, sandbox))
            with suppress(NetplugError):
                self.run(self.host.engine.publishing.publish(network, ident))

    @rule(data=st.data(), leave=st.booleans())
    def unpublish_or_leave(self, data: st.DataObject, *, leave: bool) -> None:
        record = self.chosen(data, lambda it: it.front_end is DOCKER)
        if record:
            work = self.host.engine.endpoints.leave if leave else self.host.engine.publishing.unpublish
            self.run(work(record.endpoint.network, record.endpoint.id))

    @rule(data=st.data(), number=st.integers(0, 2), remove=st.booleans())
    def add_or_remove_a_port(self, data: st.DataObject, number: int, *, remove: bool) -> None:
        record = self.chosen(data)
        if record is None:
            return
        port = tcp(20000 + 10 * self.host.endpoints().index(record) + number, 443)
        if remove and record.added:
            port = data.draw(st.sampled_from(record.added))
        work = self.host.engine.added_ports
        before = self.run(self.host.state())
        try:
            self.run((work.remove if remove else work.add)(record.endpoint.id, [port]))
        except (NetplugError, DriverError):
            assert self.run(self.host.state()) == before

    @rule(data=st.data())
    def unplug(self, data: st.DataObject) -> None:
        if record := self.chosen(data):
            self.run(self.host.engine.endpoints.delete(record.endpoint.network, record.endpoint.id))

    @rule(box=st.sampled_from(BOXES))
    def namespace_dies(self, box: str) -> None:
        self.host.kernel.vanish(f"/run/netns/{box}")
        self.run(self.host.reconciler.repair())
        self.host.kernel.appear(f"/run/netns/{box}")
        assert not [it for it in self.host.endpoints() if it.sandbox == f"/run/netns/{box}"]
        for name in KINDS:
            self.plug(name, box, CLI, given=False)

    # The host

    async def follow_facts(self, **facts: Any) -> None:
        foreign = self.host.kernel.foreign
        foreign.facts = replace(foreign.facts, **facts)
        await self.host.engine.base_plan.read_host()
        await self.host.engine.convergence.all()
        await self.host.reconciler.repair()

    @rule(mtu=MTUS, uplink=st.sampled_from(["eth0", "eth0", ""]), netfilter=st.booleans())
    def host_changes(self, mtu: int, uplink: str, *, netfilter: bool) -> None:
        self.run(self.follow_facts(mtu=mtu, uplink=uplink, bridge_netfilter=netfilter))

    @rule(data=st.data())
    def others_delete(self, data: st.DataObject) -> None:
        plans = [self.host.engine.base_plan.plan, *(record.plan for record in self.host.networks())]
        plans += [it.present for it in self.host.endpoints() if it.front_end is not DOCKER]
        steps = sorted({step.key for plan in plans for step in plan} & self.host.kernel._world.state.keys())
        steps = [key for key in steps if not key.startswith("flows/")]
        if not steps:
            return
        self.host.kernel.lose(data.draw(st.sampled_from(steps)))
        self.run(self.host.reconciler.repair())

    # Death

    def die(self, changes: int, work: Callable[[], Awaitable[object]]) -> None:
        fuse = Fuse()
        self.host.live(fuse)
        self.run(self.host.reconciler.start())
        fuse.left = changes
        with suppress(Died, NetplugError, DriverError, IpamError):
            self.run(work())
        self.run(self.host.reboot())

    @rule(data=st.data(), options=st.lists(CHANGES, min_size=1, max_size=4), changes=st.integers(0, 40))
    def die_while_updating(self, data: st.DataObject, options: list[tuple[str, str]], changes: int) -> None:
        if name := self.present(data):
            before = self.host.engine.registry.network(IDS[name]).options
            self.die(changes, lambda: self.update(name, NetworkChange(dict(options))))
            after = {**before, **dict(options)}
            now = self.host.engine.registry.network(IDS[name]).options
            assert now in (before, {key: value for key, value in after.items() if value})

    @rule(mtu=MTUS, changes=st.integers(0, 30))
    def die_while_following(self, mtu: int, changes: int) -> None:
        self.die(changes, lambda: self.follow_facts(mtu=mtu))

    @rule(name=NAMES, box=st.sampled_from(BOXES), by=st.sampled_from([CLI, CNI]), changes=st.integers(0, 25))
    def die_while_plugging(self, name: str, box: str, by: FrontEnd, changes: int) -> None:
        if self.network(name):
            self.die(changes, lambda: self.plugging(name, box, by, given=False))

    @precondition(lambda self: self.host.endpoints())
    @rule(data=st.data(), changes=st.integers(0, 25))
    def die_while_unplugging(self, data: st.DataObject, changes: int) -> None:
        if record := self.chosen(data):
            self.die(changes, lambda: self.host.engine.endpoints.delete(record.endpoint.network, record.endpoint.id))

    @invariant()
    def records_and_kernel_tell_one_story(self) -> None:
        if hasattr(self, "host"):
            self.run(self.host.check())


def _fits(record: NetworkRecord, options: dict[str, str]) -> bool:
    """Tell whether a network can have these options: its mode has them, and a burst comes with a rate."""
    after = {**record.options, **options, "mode": record.network.options.mode}
    keys = {option.key for option in DRIVERS.options(record.network.options.mode)}
    return options.keys() <= keys and not (after.get("burst") and not after.get("rate"))


def _port(name: str, box: str) -> Any:
    return tcp(8000 + 10 * sorted(KINDS).index(name) + BOXES.index(box))


def _interface(pool: Any, number: int) -> Any:
    return ip_interface(f"{pool[number]}/{pool.prefixlen}")


TestConvergenceMachine = pytest.mark.usefixtures("quiet")(ConvergenceMachine.TestCase)
TestConvergenceMachine.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
