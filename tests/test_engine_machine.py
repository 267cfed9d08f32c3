"""Use cases, deaths of the process and interference in any order, against a naive model of what must be there."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from engine_host import Died, Fuse, Host, external, tcp
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from netplug.drivers.steps import Bridge, Table
from netplug.engine.network_updates import NetworkChange
from netplug.engine.records import AttachSpec, EndpointSpec, FrontEnd, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError

DOCKER, CLI = FrontEnd.DOCKER, FrontEnd.CLI
IDS = {"blue": "a1" * 32, "red": "b2" * 32, "green": "c3" * 32}
POOLS = {"blue": "10.1.0.0/24", "red": "10.2.0.0/24", "green": "fd00:3::/64"}
PORT = {"blue": 8080, "red": 8081, "green": 8082}
NAMES = st.sampled_from(sorted(IDS))
NUMBERS = st.integers(1, 2)
CHANGES = st.sampled_from(
    [
        {"rate": "8mbit"},
        {"rate": "16mbit/0", "burst": "128kb"},
        {"rate": "", "burst": ""},
        {"mtu": "1400"},
        {"mtu": ""},
        {"icc": "false", "spoofchk": "false"},
        {"icc": "", "spoofchk": ""},
        {"masquerade": "false", "dns": "off"},
        {"masquerade": "", "dns": "on", "ttl": "9"},
        {"host_binding_ipv4": "127.0.0.1"},
        {"host_binding_ipv4": "", "gw_priority": "3"},
    ]
)
"""Options of a network that lives."""


@dataclass
class Model:
    """Networks by name with their front ends; (network, number) of endpoints: sandboxes of Docker's or namespaces."""

    networks: dict[str, FrontEnd] = field(default_factory=dict)
    endpoints: dict[tuple[str, int], bool] = field(default_factory=dict)  # whether the port is published
    added: set[tuple[str, int]] = field(default_factory=set)  # endpoints with a port that a user added
    left: set[tuple[str, int]] = field(default_factory=set)  # endpoints that left their sandbox
    unanswered: set[str] = field(default_factory=set)  # ids of what was there at the last start, until asked for again

    def of(self, name: str) -> list[tuple[str, int]]:
        return [key for key in self.endpoints if key[0] == name]

    def drop(self, key: tuple[str, int]) -> None:
        del self.endpoints[key]
        self.added.discard(key)
        self.left.discard(key)


class EngineMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.model = Model()
        self.host = self.run(Host.boot())
        self.empty = self.host.dump()

    def teardown(self) -> None:
        if hasattr(self, "host"):
            try:
                self.run(self.host.delete_all())
                self.run(self.host.check())
                assert self.host.dump() == self.empty
            finally:
                self.run(self.host.close())
                self.runner.close()

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def reboot(self) -> None:
        self.run(self.host.reboot())
        there = [it.network.id for it in self.host.networks()] + [it.endpoint.id for it in self.host.endpoints()]
        self.model.unanswered = set(there)

    def repeated(self, ident: str, work: Awaitable[object]) -> None:
        """Ask for what is there: once after a start, the answer may have been lost."""
        if ident not in self.model.unanswered:
            self.refused("exists", work)
            return
        self.model.unanswered.discard(ident)
        before = self.run(self.host.state())
        self.run(work)
        assert self.run(self.host.state()) == before

    def refused(self, kind: str, work: Awaitable[object]) -> None:
        with pytest.raises(NetplugError) as caught:
            self.run(work)
        assert caught.value.kind == kind

    def endpoint_id(self, key: tuple[str, int]) -> str:
        """Return the id that Docker gives; an attachment has one of its own."""
        name, number = key
        if self.model.networks[name] is CLI:
            record = next(r for r in self.host.endpoints() if r.sandbox == f"/run/netns/{name}{number}")
            return record.endpoint.id
        return f"{list(IDS).index(name)}{number}" * 32

    def an_endpoint(self, data: st.DataObject) -> tuple[str, int]:
        return data.draw(st.sampled_from(sorted(self.model.endpoints)))

    # Use cases

    def creation(self, name: str, by: FrontEnd) -> Awaitable[object]:
        subnet = external(POOLS[name]) if by is DOCKER else SubnetSpec(external(POOLS[name]).pool)
        return self.host.engine.networks.create(NetworkSpec(IDS[name], name, {}, (subnet,), front_end=by))

    @rule(name=NAMES, by=st.sampled_from([DOCKER, CLI]))
    def create_network(self, name: str, by: FrontEnd) -> None:
        if name in self.model.networks:
            asked = IDS[name] if by is self.model.networks[name] else "of another front end"
            self.repeated(asked, self.creation(name, by))
            return
        self.run(self.creation(name, by))
        self.model.networks[name] = by

    @rule(name=NAMES, by=st.sampled_from([DOCKER, CLI]))
    def delete_network(self, name: str, by: FrontEnd) -> None:
        work = self.host.engine.networks.delete(name, by=by)
        if name not in self.model.networks:
            self.refused("not_found", work)
        elif self.model.networks[name] is not by or (by is CLI and self.model.of(name)):
            self.refused("forbidden", work)
        else:
            self.run(work)
            self.forget_network(name)

    def updating(self, name: str, options: dict[str, str]) -> Awaitable[object]:
        return self.host.engine.network_updates.update(name, NetworkChange(options))

    @rule(name=NAMES, options=CHANGES)
    def update_network(self, name: str, options: dict[str, str]) -> None:
        if name not in self.model.networks:
            self.refused("not_found", self.updating(name, options))
            return
        self.run(self.updating(name, options))
        (record,) = (one for one in self.host.networks() if one.network.name == name)
        assert {key: record.options.get(key, "") for key in options} == options

    def forget_network(self, name: str) -> None:
        for key in self.model.of(name):
            self.model.unanswered.discard(f"{list(IDS).index(name)}{key[1]}" * 32)
            self.model.drop(key)
        del self.model.networks[name]
        self.model.unanswered.discard(IDS[name])

    def plugging(self, name: str, number: int) -> Awaitable[object]:
        """Do what brings a container or namespace into a network; both want the same port."""
        ports = (tcp(PORT[name]),) if number == 1 else ()
        if self.model.networks.get(name) is CLI:
            return self.host.engine.endpoints.attach(AttachSpec(name, f"{name}{number}", ports=ports))
        spec = EndpointSpec(f"{list(IDS).index(name)}{number}" * 32, IDS[name], ports=ports)
        return self.host.engine.endpoints.create(spec)

    @rule(name=NAMES, number=NUMBERS)
    def plug(self, name: str, number: int) -> None:
        work = self.plugging(name, number)
        if name not in self.model.networks:
            self.refused("not_found", work)
        elif (name, number) in self.model.endpoints:
            self.repeated(self.endpoint_id((name, number)), work)
        else:
            self.run(work)
            self.model.endpoints[name, number] = number == 1 and self.model.networks[name] is CLI

    @precondition(lambda self: self.model.endpoints)
    @rule(data=st.data())
    def join_and_publish(self, data: st.DataObject) -> None:
        key = self.an_endpoint(data)
        ident, sandbox = self.endpoint_id(key), f"/run/netns/{key[0]}{key[1]}"
        self.host.kernel.inhabitants.add(sandbox)
        self.run(self.host.engine.endpoints.join(IDS[key[0]], ident, sandbox))
        self.run(self.host.engine.publishing.publish(IDS[key[0]], ident))
        self.model.endpoints[key] = key[1] == 1
        self.model.left.discard(key)

    @precondition(lambda self: self.model.endpoints)
    @rule(data=st.data(), leave=st.booleans())
    def unpublish_or_leave(self, data: st.DataObject, *, leave: bool) -> None:
        key = self.an_endpoint(data)
        if self.model.networks[key[0]] is CLI:
            return  # a namespace is detached
        if leave:
            self.model.left.add(key)
        engine = self.host.engine
        self.run((engine.endpoints.leave if leave else engine.publishing.unpublish)(IDS[key[0]], self.endpoint_id(key)))
        self.model.endpoints[key] = False

    @precondition(lambda self: self.model.endpoints)
    @rule(data=st.data())
    def unplug(self, data: st.DataObject) -> None:
        key = self.an_endpoint(data)
        self.model.unanswered.discard(self.endpoint_id(key))
        assert self.run(self.host.engine.endpoints.delete(IDS[key[0]], self.endpoint_id(key)))
        self.model.drop(key)

    def adding(self, key: tuple[str, int]) -> Awaitable[object]:
        ports = (tcp(PORT[key[0]] + 1000 * key[1], 90),)
        return self.host.engine.added_ports.add(self.endpoint_id(key), ports)

    def taking_back(self, key: tuple[str, int]) -> Awaitable[object]:
        return self.host.engine.added_ports.remove(self.endpoint_id(key), (tcp(0, 90),))

    @precondition(lambda self: self.model.endpoints)
    @rule(data=st.data())
    def add_a_port(self, data: st.DataObject) -> None:
        key = self.an_endpoint(data)
        if key in self.model.left:
            self.refused("unavailable", self.adding(key))
            return
        self.run(self.adding(key))
        self.model.added.add(key)

    @precondition(lambda self: self.model.endpoints)
    @rule(data=st.data())
    def take_a_port_back(self, data: st.DataObject) -> None:
        key = self.an_endpoint(data)
        if key not in self.model.added:
            self.refused("not_found", self.taking_back(key))
            return
        self.run(self.taking_back(key))
        self.model.added.discard(key)

    # Death and interference

    def die(self, changes: int, work: Callable[[], Awaitable[object]]) -> None:
        """Do `work` until the process dies, and start anew."""
        fuse = Fuse()
        self.host.live(fuse)
        self.run(self.host.reconciler.start())
        fuse.left = changes
        with suppress(Died):
            self.run(work())
        self.reboot()

    @rule()
    def restart(self) -> None:
        self.reboot()

    @rule(name=NAMES, number=NUMBERS, changes=st.integers(0, 25))
    def die_while_plugging(self, name: str, number: int, changes: int) -> None:
        if name not in self.model.networks or (name, number) in self.model.endpoints:
            return
        self.die(changes, lambda: self.plugging(name, number))
        records = self.host.engine.registry.endpoints(IDS[name])
        if len(records) > len(self.model.of(name)):
            self.model.endpoints[name, number] = number == 1 and self.model.networks[name] is CLI

    @rule(name=NAMES, by=st.sampled_from([DOCKER, CLI]), changes=st.integers(0, 60))
    def die_while_creating(self, name: str, by: FrontEnd, changes: int) -> None:
        if name in self.model.networks:
            return
        self.die(changes, lambda: self.creation(name, by))
        if any(record.network.name == name for record in self.host.networks()):
            self.model.networks[name] = by

    @rule(name=NAMES, changes=st.integers(0, 60))
    def die_while_deleting(self, name: str, changes: int) -> None:
        if self.model.networks.get(name) is not DOCKER:
            return
        self.die(changes, lambda: self.host.engine.networks.delete(name, by=DOCKER))
        left = {record.endpoint.id for record in self.host.engine.registry.endpoints(IDS[name])}
        for key in self.model.of(name):
            if self.endpoint_id(key) not in left:
                self.model.drop(key)
        if all(record.network.name != name for record in self.host.networks()):
            self.forget_network(name)

    @rule(name=NAMES, options=CHANGES, changes=st.integers(0, 30))
    def die_while_updating(self, name: str, options: dict[str, str], changes: int) -> None:
        if name in self.model.networks:
            self.die(changes, lambda: self.updating(name, options))

    @precondition(lambda self: self.model.endpoints)
    @rule(data=st.data(), changes=st.integers(0, 12))
    def die_while_a_port_comes_or_goes(self, data: st.DataObject, changes: int) -> None:
        key = self.an_endpoint(data)
        if key in self.model.left:
            return
        self.die(changes, lambda: self.taking_back(key) if key in self.model.added else self.adding(key))
        record = self.host.endpoint(self.endpoint_id(key), IDS[key[0]])
        (self.model.added.add if record.added else self.model.added.discard)(key)

    @rule(data=st.data(), tamper=st.booleans())
    def interfere(self, data: st.DataObject, *, tamper: bool) -> None:
        plans = [self.host.engine.base_plan.plan, *(record.plan for record in self.host.networks())]
        steps = [step for plan in plans for step in plan if not isinstance(step, Bridge)]
        steps = [step for step in steps if step.key in self.host.kernel._world.state]
        if not steps:
            return
        step = data.draw(st.sampled_from(steps))
        if tamper and isinstance(step, Table):
            self.host.kernel.tamper(replace(step, text=step.text.replace("drop", "accept")))
        else:
            self.host.kernel.lose(step.key)
        assert self.run(self.host.reconciler.diff())
        assert self.run(self.host.reconciler.repair())

    @invariant()
    def everything_tells_the_models_story(self) -> None:
        if not hasattr(self, "host"):
            return
        self.run(self.host.check())
        assert {r.network.name: r.front_end for r in self.host.networks()} == self.model.networks
        found = {r.endpoint.id: bool(r.published) for r in self.host.endpoints()}
        assert found == {self.endpoint_id(key): published for key, published in self.model.endpoints.items()}
        added = {r.endpoint.id for r in self.host.endpoints() if r.opened}
        assert added == {self.endpoint_id(key) for key in self.model.added - self.model.left}
        assert bool(self.host.engine.base_plan.plan) is bool(self.model.networks)


TestEngineMachine = pytest.mark.usefixtures("quiet")(EngineMachine.TestCase)
TestEngineMachine.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
