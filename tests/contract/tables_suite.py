"""What every kernel must do with tables and elements of their sets. For the fake and for the real one."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from kernel_suite import (
    ADJUSTED,
    ANTISPOOF_TABLE,
    BRIDGE,
    CREATED,
    EQUAL,
    NETWORKS_TABLE,
    VETH,
    Surroundings,
    gone,
    refusal,
    whats,
)
from owned import ENTRIES, tables

from netplug.drivers import antispoof, firewall, published_ports
from netplug.drivers.api import PortMapping
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Element, Flows, HostPort, Proto, Relay, Resolver, Step, Table
from netplug.drivers.tables import ANTISPOOF, HOST_MODE, NETWORKS
from netplug.kernel.api import Kernel, StepError
from netplug.kernel.executor import Executor

HOST_TABLE = firewall.table(HOST_MODE, "host_mode")
LED = Element(NETWORKS, "published4_any", "tcp . 8080", "10.9.0.2 . 80")
FROM = Element(NETWORKS, "from", "np-test", "goto from_open")
GUARD = antispoof.own(VETH.name, VETH.peer_mac, (ip_address("10.9.0.2"), ip_address("fd00:9::2"))).steps
SUBNETS = Table(
    "inet",
    "netplug",
    "set nets4 { type ipv4_addr; flags interval; }\nmap nets6 { type ipv6_addr : verdict; flags interval; }",
)
OTHER_TEXT = NETWORKS_TABLE.text.replace(
    'comment "bridges with anti-spoofing on all ports"', 'comment "of a former text"'
)
assert NETWORKS_TABLE.text != OTHER_TEXT
ELEMENTS = (
    *((NETWORKS_TABLE, it) for it in (LED, FROM)),
    (NETWORKS_TABLE, replace(FROM, data="drop")),
    (NETWORKS_TABLE, Element(NETWORKS, "icc", "np-test . np-test")),
    (NETWORKS_TABLE, Element(NETWORKS, "guarded", "np-test")),
    (NETWORKS_TABLE, Element(NETWORKS, "home4", "10.9.0.0/24 . np-test")),
    (NETWORKS_TABLE, Element(NETWORKS, "home4", "10.9.0.2 . np-0123456789ab")),
    (NETWORKS_TABLE, Element(NETWORKS, "home6", "fd00:9::/64 . np-test")),
    (SUBNETS, Element(NETWORKS, "nets4", "10.9.0.0/24")),
    (SUBNETS, Element(NETWORKS, "nets4", "255.0.0.0/8")),
    (SUBNETS, Element(NETWORKS, "nets4", "0.0.0.0/8")),
    (SUBNETS, Element(NETWORKS, "nets6", "fd00:9::/64", "drop")),
    (NETWORKS_TABLE, Element(NETWORKS, "published4", "10.0.0.5 . udp . 8080", "10.9.0.2 . 80")),
    (NETWORKS_TABLE, Element(NETWORKS, "published4_any", "sctp . 8080", "10.9.0.2 . 80")),
    (NETWORKS_TABLE, Element(NETWORKS, "published6_any", "tcp . 8080", "fd00:9::2 . 80")),
    (NETWORKS_TABLE, Element(NETWORKS, "published6", "fd00::5 . tcp . 8080", "fd00:9::2 . 80")),
    (NETWORKS_TABLE, Element(NETWORKS, "store4", "10.0.0.5 . 2379")),
    (NETWORKS_TABLE, Element(NETWORKS, "store_here", "2379")),
    *((ANTISPOOF_TABLE, it) for it in GUARD),
    *((ANTISPOOF_TABLE, it) for it in antispoof.exempt(VETH.name)),
    *((ANTISPOOF_TABLE, it) for it in antispoof.bridge(BRIDGE.mac)),
    (HOST_TABLE, Element(HOST_MODE, "target4", "tcp", "10.9.0.2")),
    (HOST_TABLE, Element(HOST_MODE, "target6", "udp", "fd00:9::2")),
)


def key(value: object) -> str:
    return str(getattr(value, "key", ""))


class TablesSuite:
    """Tables and what they hold."""

    @pytest.mark.parametrize("table", [NETWORKS_TABLE, ANTISPOOF_TABLE, HOST_TABLE], ids=key)
    async def test_table_is_created_once_found_equal_and_removed(
        self, kernel: Kernel, around: Surroundings, table: Table
    ) -> None:
        before = around.snapshot()
        assert await whats(kernel, table) == ["missing"]
        assert await kernel.ensure((table,)) == [CREATED]
        assert await whats(kernel, table) == []
        assert await kernel.ensure((table,)) == [EQUAL]
        assert tables(await kernel.owned()) == {f"{table.family} {table.name}"}
        await gone(kernel, table)
        assert await whats(kernel, table) == ["missing"]
        assert around.snapshot() == before

    @pytest.mark.parametrize(("table", "step"), ELEMENTS, ids=key)
    async def test_element_is_created_once_found_equal_and_removed(
        self, kernel: Kernel, around: Surroundings, table: Table, step: Element
    ) -> None:
        await kernel.ensure((table,))
        before = around.snapshot()
        assert await whats(kernel, table, step) == ["missing"]
        assert await kernel.ensure((table, step)) == [EQUAL, CREATED]
        assert await whats(kernel, table, step) == []
        assert await kernel.ensure((table, step)) == [EQUAL, EQUAL]
        assert await kernel.ensure((step,)) == [EQUAL]
        assert (await kernel.owned()).of(*ENTRIES) == {step}
        around.lose(step)
        assert await whats(kernel, table, step) == ["missing"]
        assert await kernel.ensure((step,)) == [CREATED]
        assert await whats(kernel, table, step) == []
        await gone(kernel, step)
        assert around.snapshot() == before
        assert (await kernel.owned()).of(*ENTRIES) == frozenset()
        assert await whats(kernel, table, step) == ["missing"]
        await gone(kernel, step, table)

    async def test_table_that_others_deleted_comes_back_with_its_elements(
        self, kernel: Kernel, around: Surroundings
    ) -> None:
        kept, removed, late = LED, replace(LED, item="tcp . 8081"), replace(LED, item="tcp . 8082")
        await kernel.ensure((NETWORKS_TABLE, kept, removed, late, FROM))
        await kernel.remove((removed,))
        around.lose(NETWORKS_TABLE)
        assert await whats(kernel, NETWORKS_TABLE, kept, FROM) == ["missing"] * 3
        await gone(kernel, late)
        assert await kernel.ensure((NETWORKS_TABLE,)) == [CREATED]
        assert (await kernel.owned()).of(*ENTRIES) == {kept, FROM}
        assert await whats(kernel, NETWORKS_TABLE, kept, FROM) == []
        around.lose(NETWORKS_TABLE)
        assert await kernel.ensure((NETWORKS_TABLE, kept, FROM, removed)) == [CREATED, EQUAL, EQUAL, CREATED]

    async def test_table_that_we_removed_comes_back_empty(self, kernel: Kernel) -> None:
        await kernel.ensure((NETWORKS_TABLE, LED))
        await gone(kernel, NETWORKS_TABLE)
        assert (await kernel.owned()).of(*ENTRIES) == frozenset()
        assert await kernel.ensure((NETWORKS_TABLE,)) == [CREATED]
        assert (await kernel.owned()).of(*ENTRIES) == frozenset()
        assert await kernel.ensure((LED,)) == [CREATED]

    async def test_table_with_another_text_is_replaced_with_its_elements(self, kernel: Kernel) -> None:
        other = replace(NETWORKS_TABLE, text=OTHER_TEXT)
        await kernel.ensure((other, LED, FROM))
        assert len(await whats(kernel, NETWORKS_TABLE)) == 1
        assert await kernel.ensure((NETWORKS_TABLE,)) == [ADJUSTED]
        assert await whats(kernel, NETWORKS_TABLE, LED, FROM) == []
        assert (await kernel.owned()).of(*ENTRIES) == {LED, FROM}
        assert await kernel.ensure((NETWORKS_TABLE, LED, FROM)) == [EQUAL] * 3

    async def test_elements_of_a_set_that_changed_its_type_or_went_are_not_kept(self, kernel: Kernel) -> None:
        text = "set ports { type inet_service; }\nset links { type ifname; }\nset old { type ifname; }"
        former = Table("inet", "netplug", text)
        later = replace(former, text="set ports { type inet_proto . inet_service; }\nset links { type ifname; }")
        port, link, old = (
            Element(NETWORKS, name, item) for name, item in (("ports", "80"), ("links", "np-a"), ("old", "np-a"))
        )
        await kernel.ensure((former, port, link, old))
        assert await kernel.ensure((later, link)) == [ADJUSTED, EQUAL]
        assert (await kernel.owned()).of(*ENTRIES) == {link}
        assert (await refusal(kernel, old)).kind == "not_found"
        assert await kernel.ensure((replace(port, item="tcp . 80"),)) == [CREATED]

    async def test_elements_that_lead_to_a_chain_that_went_are_not_kept(self, kernel: Kernel) -> None:
        text = "map ways { type ifname : verdict; }\nchain shut {\ndrop\n}\nchain out {\naccept\n}"
        former = Table("inet", "netplug", text)
        later = replace(former, text=text.replace("chain shut", "chain closed"))
        shut, out, through = (
            Element(NETWORKS, "ways", f"np-{number}", data)
            for number, data in enumerate(("goto shut", "goto out", "accept"))
        )
        closed = replace(shut, data="goto closed")
        await kernel.ensure((former, shut, out, through))
        assert await kernel.ensure((later,)) == [ADJUSTED]
        assert (await kernel.owned()).of(*ENTRIES) == {out, through}
        assert await kernel.ensure((former, shut)) == [ADJUSTED, CREATED]
        assert await kernel.ensure((later, closed, out, through)) == [ADJUSTED, CREATED, EQUAL, EQUAL]
        assert await whats(kernel, later, closed, out, through) == []
        around_again = (former, shut, out, through)
        assert await kernel.ensure(around_again) == [ADJUSTED, CREATED, EQUAL, EQUAL]
        assert await whats(kernel, *around_again) == []

    @pytest.mark.parametrize("step", [LED, FROM, GUARD[0]], ids=key)
    async def test_element_without_its_table_is_refused(self, kernel: Kernel, step: Element) -> None:
        error = await refusal(kernel, step)
        assert (error.kind, step.table in error.message) == ("not_found", True)
        await gone(kernel, step)

    async def test_element_of_no_set_is_refused(self, kernel: Kernel) -> None:
        await kernel.ensure((NETWORKS_TABLE,))
        error = await refusal(kernel, replace(LED, set="nowhere"))
        assert (error.kind, "'nowhere'" in error.message) == ("not_found", True)

    async def test_element_that_leads_to_no_chain_is_refused_and_named(self, kernel: Kernel) -> None:
        good, bad = replace(FROM, item="np-good"), replace(FROM, data="goto nowhere")
        await kernel.ensure((NETWORKS_TABLE,))
        with pytest.raises(StepError) as caught:
            await kernel.ensure((good, bad))
        assert (caught.value.kind, caught.value.step) == ("not_found", bad)
        await gone(kernel, good)
        assert (await kernel.owned()).of(*ENTRIES) == frozenset()

    @pytest.mark.parametrize(
        "step",
        [
            replace(LED, item="8080"),
            replace(LED, item="tcp . 8080 . 1"),
            replace(LED, item="tcp . 80800"),
            replace(LED, item="tcp . http"),
            replace(LED, item="tcp . -1"),
            replace(LED, item="nope . 8080"),
            replace(LED, data=""),
            replace(LED, data="10.9.0.2"),
            replace(LED, data="fd00:9::2 . 80"),
            replace(LED, data="10.9.0 . 80"),
            replace(FROM, data=""),
            replace(FROM, data="goto"),
            replace(FROM, data="vanish"),
            replace(FROM, item="np-0123456789abcdef"),
            Element(NETWORKS, "guarded", "np-test", "drop"),
            Element(NETWORKS, "home4", "10.9.0.1/24 . np-test"),
            Element(NETWORKS, "store4", "10.9.0.0/24 . 2379"),
            Element(ANTISPOOF, "own4", f"{VETH.name} . 02:00:00 . 10.9.0.2"),
        ],
        ids=lambda step: f"{step.set} {step.item}:{step.data}",
    )
    async def test_element_that_does_not_fit_is_refused_and_named(self, kernel: Kernel, step: Element) -> None:
        good = replace(LED, item="tcp . 9999")
        await kernel.ensure((NETWORKS_TABLE, ANTISPOOF_TABLE))
        with pytest.raises(StepError) as caught:
            await kernel.ensure((good, step))
        assert (caught.value.kind, caught.value.step) == ("invalid", step)
        await gone(kernel, good)
        assert (await kernel.owned()).of(*ENTRIES) == frozenset()

    @pytest.mark.parametrize(
        ("step", "other"),
        [(LED, replace(LED, data="10.9.0.3 . 80")), (FROM, replace(FROM, data="drop"))],
        ids=key,
    )
    async def test_element_that_differs_is_adjusted(self, kernel: Kernel, step: Element, other: Element) -> None:
        await kernel.ensure((NETWORKS_TABLE, other))
        (what,) = await whats(kernel, NETWORKS_TABLE, step)
        assert other.data in what
        assert await kernel.ensure((step,)) == [ADJUSTED]
        assert await whats(kernel, NETWORKS_TABLE, step) == []
        assert (await kernel.owned()).of(*ENTRIES) == {step}
        await gone(kernel, step, NETWORKS_TABLE)

    @pytest.mark.parametrize(
        ("step", "other"),
        [(LED, replace(LED, data="10.9.0.3 . 80")), (FROM, replace(FROM, data="drop"))],
        ids=key,
    )
    async def test_element_that_was_adjusted_is_put_back_when_the_rest_fails(
        self, kernel: Kernel, around: Surroundings, step: Element, other: Element
    ) -> None:
        await kernel.ensure((NETWORKS_TABLE, other))
        around.take_port(Proto.TCP, ip_address("0.0.0.0"), 8081)
        before = around.snapshot()
        taken = HostPort(Proto.TCP, ip_address("0.0.0.0"), 8081)
        with pytest.raises(StepError, match="8081"):
            await Executor(kernel).apply(Plan((step, taken)))
        assert await whats(kernel, other) == []
        assert (await kernel.owned()).of(*ENTRIES) == {other}
        # What is made and then adjusted by one plan is new, and goes.
        await gone(kernel, other)
        with pytest.raises(StepError, match="8081"):
            await Executor(kernel).apply(Plan((other, step, taken)))
        assert (await kernel.owned()).of(*ENTRIES) == set()
        await kernel.ensure((other,))
        assert around.snapshot() == before
        await gone(kernel, other, NETWORKS_TABLE)

    async def test_elements_do_not_disturb_each_other(self, kernel: Kernel) -> None:
        guards = [
            antispoof.own(f"nph{i}", f"02:00:00:00:02:{i:02x}", (ip_address(f"10.9.0.{i}"),)).steps
            for i in range(2, 24)
        ]
        ports: list[Step] = [replace(LED, item=f"tcp . {port}") for port in range(8000, 8020)]
        subnets: list[Step] = [Element(NETWORKS, "home4", f"10.{i}.0.0/16 . np-{i}") for i in range(20)]
        steps = [NETWORKS_TABLE, ANTISPOOF_TABLE, *(it for guard in guards for it in guard), *ports, *subnets]
        assert set(await kernel.ensure(steps)) == {CREATED}
        await gone(kernel, *(it for guard in guards[::2] for it in guard), *ports[::2], *subnets[::2])
        left = {*(it for guard in guards[1::2] for it in guard), *ports[1::2], *subnets[1::2]}
        assert (await kernel.owned()).of(*ENTRIES) == left
        assert await whats(kernel, *left) == []
        await gone(kernel, *reversed(steps))
        assert (await kernel.owned()).of(*ENTRIES) == set()

    async def test_intervals_side_by_side_do_not_disturb_each_other(self, kernel: Kernel) -> None:
        steps = [Element(NETWORKS, "nets4", f"{i}.0.0.0/8") for i in range(256)]
        assert set(await kernel.ensure((SUBNETS, *steps))) == {CREATED}
        assert (await kernel.owned()).of(*ENTRIES) == set(steps)
        left = steps[1::3] + steps[2::3]
        await gone(kernel, *steps[::3])
        assert (await kernel.owned()).of(*ENTRIES) == set(left)
        assert await whats(kernel, *left) == []
        assert (await kernel.ensure((SUBNETS, *steps))).count(CREATED) == len(steps[::3])

    async def test_relay_serves_a_reserved_port(self, kernel: Kernel) -> None:
        everywhere = ip_address("::")
        port = HostPort(Proto.TCP, everywhere, 8080)
        step = Relay(Proto.TCP, everywhere, 8080, ip_address("fd00:9::2"), 80)
        assert (await refusal(kernel, step)).kind == "not_found"
        assert await kernel.ensure((port, step)) == [CREATED, CREATED]
        assert await kernel.ensure((port, step)) == [EQUAL, EQUAL]
        other = replace(step, target=81)
        assert len(await whats(kernel, other)) == 1
        assert await kernel.ensure((other,)) == [ADJUSTED]
        assert await whats(kernel, port, other) == []
        await gone(kernel, other)
        assert await whats(kernel, port, other) == ["missing"]
        await gone(kernel, port)

    async def test_published_port_is_undone_whole(self, kernel: Kernel, around: Surroundings) -> None:
        before = around.snapshot()
        everywhere, inside = ip_address("0.0.0.0"), ip_address("10.9.0.2")
        around.take_port(Proto.TCP, everywhere, 8081)
        plan = Plan((NETWORKS_TABLE,))
        plan += published_ports.publish(PortMapping(Proto.UDP, 80, host_port=8080), everywhere, inside)
        plan += published_ports.publish(PortMapping(Proto.TCP, 80, host_port=8081), everywhere, inside)
        assert Flows in map(type, plan)
        with pytest.raises(Exception, match="8081"):
            await Executor(kernel).apply(plan)
        assert around.snapshot() == before

    async def test_resolver_follows_its_link_and_its_step(self, kernel: Kernel, around: Surroundings) -> None:
        step = Resolver("blue", "np-test", ip_address("10.9.0.1"), 25353)
        assert await kernel.ensure((BRIDGE, step)) == [CREATED, CREATED]
        assert await kernel.ensure((replace(step, network="red"),)) == [ADJUSTED]
        assert len(await whats(kernel, step)) == 1
        assert await kernel.ensure((step,)) == [ADJUSTED]
        around.lose(BRIDGE)
        assert await whats(kernel, step) == ["missing"]
        assert await kernel.ensure((BRIDGE,)) == [CREATED]
        assert len(await whats(kernel, step)) == 1
        await kernel.ensure((step,))
        assert await whats(kernel, BRIDGE, step) == []
        await gone(kernel, step, BRIDGE)

    async def test_resolver_refuses_a_taken_port_and_says_where(self, kernel: Kernel, around: Surroundings) -> None:
        step = Resolver("blue", "np-test", ip_address("10.9.0.1"), 25353)
        await kernel.ensure((BRIDGE,))
        around.take_port(Proto.UDP, ip_address("0.0.0.0"), 25353)
        error = await refusal(kernel, step)
        assert (error.kind, "10.9.0.1 port 25353" in error.message) == ("unavailable", True)
        assert await whats(kernel, step) == ["missing"]
        await gone(kernel, step, BRIDGE)
