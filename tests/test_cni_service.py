"""The CNI front end on an engine with a fake kernel: whole commands, failures in the middle, several lives."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_host import Host, consistent

from netplug.drivers.steps import Gate
from netplug.drivers.tables import NETWORKS
from netplug.frontends.cni.service import CniService
from netplug.frontends.cni.wire import Call

NETNS = "/run/netns/box"
SUBNET = {"ipam": {"type": "netplug-ipam", "subnet": "10.1.0.0/29"}}
PORTS = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}


class Plugin:
    """The plugin of a host, as a runtime sees it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    async def __call__(self, command: str, container: str = "c", netns: str = NETNS, **config: Any) -> dict[str, Any]:
        env = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
        text = {"cniVersion": "1.1.0", "name": "blue", "type": "pynet"} | config
        reply = await CniService(self.host.engine).answer(Call("pynet", env, json.dumps(text).encode()))
        answer: dict[str, Any] = json.loads(reply.stdout) if reply.stdout else {}
        assert ("code" in answer) == bool(reply.code)
        return answer


@pytest.fixture
async def plugin() -> AsyncIterator[Plugin]:
    async with consistent() as host:
        yield Plugin(host)


def valid(*containers: str) -> dict[str, Any]:
    return {"cni.dev/valid-attachments": [{"containerID": one, "ifname": "eth0"} for one in containers]}


async def test_add_check_del_gc_leave_nothing(plugin: Plugin) -> None:
    before = plugin.host.dump()
    made = await plugin("ADD", **SUBNET, **PORTS)
    assert made["ips"] == [{"address": "10.1.0.2/29", "gateway": "10.1.0.1", "interface": 2}]
    assert await plugin("CHECK", **SUBNET, prevResult=made) == {}
    assert await plugin("STATUS", **SUBNET) == {}
    for netns in (NETNS, "", "/run/netns/gone"):
        assert await plugin("DEL", netns=netns) == {}
    assert plugin.host.endpoints() == []
    assert await plugin("GC", **valid()) == {}
    assert plugin.host.networks() == []
    assert plugin.host.dump() == before


async def test_late_del_of_a_former_life_takes_nothing_of_the_present_one(plugin: Plugin) -> None:
    """A tool that makes its container's id from the path of the namespace gives both the same."""
    host = plugin.host
    old = await plugin("ADD", **SUBNET)
    host.kernel.vanish(NETNS)
    host.kernel.appear(NETNS)
    new = await plugin("ADD", **SUBNET)
    assert new["ips"] != old["ips"]
    (there,) = host.endpoints()
    assert await plugin("DEL", **SUBNET, prevResult=old) == {}
    assert host.endpoints() == [there]
    assert await plugin("CHECK", **SUBNET, prevResult=new) == {}
    host.kernel.vanish(NETNS)
    host.kernel.appear(NETNS)
    assert (await plugin("CHECK", **SUBNET, prevResult=new))["code"]
    assert await plugin("DEL", **SUBNET, prevResult=new) == {}
    assert host.endpoints() == []


async def test_state_outlives_the_daemon(plugin: Plugin) -> None:
    made = await plugin("ADD", **SUBNET, **PORTS)
    await plugin.host.reboot()
    assert await plugin("CHECK", **SUBNET, prevResult=made) == {}
    refused = await plugin("ADD", "other", netns="/run/netns/other", **SUBNET, **PORTS)
    assert (refused["code"], "8080" in refused["msg"]) == (11, True)
    assert await plugin("DEL") == {}
    assert (await plugin("ADD", "other", **SUBNET, **PORTS))["ips"]


@pytest.mark.parametrize("failing", ["link/nph", "address/", "route/", f"element/{NETWORKS}/published"])
async def test_failure_in_the_middle_leaves_no_network_either(plugin: Plugin, failing: str) -> None:
    before = await plugin.host.state()
    probe = await plugin("ADD", **SUBNET, **PORTS)
    keys = [step.key for step in plugin.host.endpoints()[0].present if step.key.startswith(failing)]
    assert probe
    assert keys
    await plugin("GC", **valid())
    plugin.host.kernel.fail_at(keys[0])
    refused = await plugin("ADD", **SUBNET, **PORTS)
    plugin.host.kernel.heal()
    assert refused["code"] == 100
    assert plugin.host.networks() == []
    assert plugin.host.endpoints() == []
    assert plugin.host.leases() == []
    assert (await plugin.host.state())[0] == before[0]  # type: ignore[index]


async def test_full_range_is_told_by_add_and_status(plugin: Plugin) -> None:
    for number in range(5):
        assert (await plugin("ADD", f"c{number}", f"/run/netns/{number}", **SUBNET))["ips"]
    assert (await plugin("ADD", "late", **SUBNET))["code"] == 11
    assert (await plugin("STATUS", **SUBNET))["code"] == 50
    await plugin("GC", **SUBNET, **valid("c1", "c2"))
    assert sorted(one.container for one in plugin.host.endpoints()) == ["c1", "c2"]
    assert await plugin("STATUS", **SUBNET) == {}


async def test_network_of_somebody_else_is_joined_and_left(plugin: Plugin) -> None:
    await plugin.host.cli_network("10.5.0.0/24", name="blue")
    assert (await plugin("ADD"))["ips"][0]["address"] == "10.5.0.2/24"
    assert (await plugin("ADD", "d", **SUBNET))["code"] == 7
    await plugin("GC", **valid())
    assert [one.network.name for one in plugin.host.networks()] == ["blue"]


async def test_changed_configuration_makes_the_empty_network_anew(plugin: Plugin) -> None:
    await plugin("ADD", **SUBNET)
    assert "10.1.0.0/29" in (await plugin("ADD", "d", ipam={"subnet": "10.2.0.0/24"}))["msg"]
    await plugin("DEL")
    assert (await plugin("ADD", "d", ipam={"subnet": "10.2.0.0/24"}, mtu=1400))["ips"][0]["address"] == "10.2.0.2/24"
    assert (await plugin("ADD", "e", ipam={"subnet": "10.2.0.0/24"}, mtu=1300))["code"] == 7


async def test_link_tuned_by_others_is_no_drift(plugin: Plugin) -> None:
    made = await plugin("ADD", **SUBNET)
    (built,) = plugin.host.endpoints()
    assert all(step.tunable for step in built.plan if hasattr(step, "tunable"))
    made["interfaces"][2]["mac"] = "02:00:00:00:00:09"
    assert await plugin("CHECK", **SUBNET, prevResult=made) == {}


@pytest.mark.parametrize(
    ("config", "code"), [({"cniVersion": "7"}, 1), ({"colour": 1}, 2), ({"name": ""}, 7), ({"mtu": "x"}, 7)], ids=str
)
async def test_refusals_change_nothing(plugin: Plugin, config: dict[str, Any], code: int) -> None:
    before = await plugin.host.state()
    assert (await plugin("ADD", **config))["code"] == code
    assert await plugin.host.state() == before


async def test_del_takes_any_configuration_that_has_a_name(plugin: Plugin) -> None:
    assert await plugin("DEL", colour=1, mtu="x", ipam=[], prevResult="x") == {}


async def test_status_mends_what_others_displaced_before_it_answers(plugin: Plugin) -> None:
    kernel, gate, table = plugin.host.kernel, Gate(4, "nft"), f"table/{NETWORKS}"
    kernel.foreign.facts = replace(kernel.foreign.facts, gates=((4, "nft"),))
    await plugin("ADD", **SUBNET)
    before = plugin.host.dump()
    for key in (gate.key, table):
        kernel.lose(key)
        assert await plugin("STATUS", **SUBNET) == {}
        assert plugin.host.dump() == before
    kernel.fail_at(table)
    kernel.lose(table)
    refusal = await plugin("STATUS", **SUBNET)
    assert (refusal["code"], refusal["msg"]) == (51, "network 'blue' is damaged")
    kernel.heal()
    assert await plugin("STATUS", **SUBNET) == {}
    await plugin("DEL")
    await plugin("GC", **valid())


async def test_check_is_about_the_namespace_that_it_names(plugin: Plugin) -> None:
    """A runtime that has made the namespace anew, without an ADD, has to be told that nothing is there."""
    made = await plugin("ADD", **SUBNET)
    other = await plugin("CHECK", netns="/run/netns/other", **SUBNET, prevResult=made)
    assert (other["code"], NETNS in other["msg"]) == (104, True)
    plugin.host.kernel.vanish("/run/netns/other")
    assert (await plugin("CHECK", netns="/run/netns/other", **SUBNET, prevResult=made))["code"] == 104
    nothing = await plugin("CHECK", **SUBNET, prevResult=made | {"interfaces": made["interfaces"][:2]})
    assert (nothing["code"], "eth0" in nothing["msg"]) == (104, True)
    assert await plugin("CHECK", **SUBNET, prevResult=made) == {}


async def test_addresses_kept_by_name_are_room_for_an_add(plugin: Plugin) -> None:
    sticky = SUBNET | {"sticky": "1h"}
    for number in range(5):
        labels = {"args": {"cni": {"labels": [{"key": "nerdctl/name", "value": f"web{number}"}]}}}
        assert (await plugin("ADD", f"c{number}", f"/run/netns/{number}", **sticky, **labels))["ips"]
        await plugin("DEL", f"c{number}", f"/run/netns/{number}")
    pool = plugin.host.engine.allocator.usage(plugin.host.networks()[0].pools[0])
    assert (pool.free, pool.kept) == (0, 5)
    assert await plugin("STATUS", **sticky) == {}
    assert (await plugin("ADD", **sticky))["ips"]


async def test_each_set_of_ranges_needs_room(plugin: Plugin) -> None:
    sets = [[{"subnet": "10.1.0.0/30"}], [{"subnet": "10.2.0.0/24"}]]
    ipam = {"ipam": {"type": "netplug-ipam", "ranges": sets}}
    assert len((await plugin("ADD", **ipam))["ips"]) == 2
    assert (await plugin("ADD", "d", "/run/netns/d", **ipam))["code"] == 11
    status = await plugin("STATUS", **ipam)
    assert (status["code"], "10.1.0.0/30" in status["msg"]) == (50, True)
    await plugin("DEL")
    assert await plugin("STATUS", **ipam) == {}


@pytest.mark.parametrize(
    "item", [{}, {"containerID": "c"}, {"ifname": "eth0"}, {"containerID": None, "ifname": "eth0"}, {"containerID": 7}]
)
async def test_gc_frees_nothing_where_an_attachment_cannot_be_read(plugin: Plugin, item: dict[str, Any]) -> None:
    await plugin("ADD", **SUBNET)
    refused = await plugin("GC", **{"cni.dev/valid-attachments": [{"containerID": "d", "ifname": "eth0"}, item]})
    assert (refused["code"], "is missing" in refused["msg"]) == (7, True)
    assert (await plugin("GC", **{"cni.dev/valid-attachments": False}))["code"] == 7
    assert [one.container for one in plugin.host.endpoints()] == ["c"]
    assert await plugin("GC", **{"cni.dev/valid-attachments": [{"containerid": "c", "IfName": "eth0"}]}) == {}
    assert [one.container for one in plugin.host.endpoints()] == ["c"]


async def test_route_with_an_attribute_that_is_not_set_is_refused_and_the_address_given_back(
    plugin: Plugin, tmp_path: Path
) -> None:
    """In the main table, one for another table would lead packets that it is not for."""
    asked, answer, theirs = tmp_path / "asked", tmp_path / "answer", tmp_path / "theirs"
    theirs.write_text(
        f"#!/bin/sh\ncat >/dev/null; echo $CNI_COMMAND >>{asked}; [ $CNI_COMMAND = DEL ] || cat {answer}\n"
    )
    theirs.chmod(0o755)

    async def add(**route: Any) -> dict[str, Any]:
        found = {"ips": [{"address": "10.1.0.7/24"}], "routes": [{"dst": "10.9.0.0/16", "gw": "10.1.0.5"} | route]}
        answer.write_text(json.dumps({"cniVersion": "1.1.0"} | found))
        env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": NETNS, "CNI_IFNAME": "eth0"}
        text = {"cniVersion": "1.1.0", "name": "blue", "type": "pynet", "ipam": {"type": "theirs"}}
        call = Call("pynet", env | {"CNI_PATH": str(tmp_path)}, json.dumps(text).encode())
        said: dict[str, Any] = json.loads((await CniService(plugin.host.engine).answer(call)).stdout)
        return said

    for name, value in (("table", 100), ("mtu", 1300), ("advmss", 1200), ("priority", 7), ("scope", 253), ("mtu", [7])):
        asked.unlink(missing_ok=True)
        refused = await add(**{name: value})
        assert (refused["code"], f"{name} {value} of the IPAM plugin's route to 10.9" in refused["msg"]) == (2, True)
        assert refused["details"] == f"leave {name} out of the IPAM plugin's configuration"
        assert asked.read_text().split() == ["ADD", "DEL"]
        assert plugin.host.networks() == []
    assert (await add(table=254, mtu=0, scope=0))["routes"] == [{"dst": "10.9.0.0/16", "gw": "10.1.0.5"}]
