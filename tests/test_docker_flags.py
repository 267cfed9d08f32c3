"""Flags that only newer Dockers have, in each mode, by the requests that 28.5 and 29.7 sent for them.

They are the rows of the table in docs/docker.md that name a version. The network that the recorded command is about
gets the mode; others of the recording stay bridges.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import pytest_asyncio
from docker_client import FIXTURES, GENERIC, Plugin, endpoint
from engine_host import led_to

from netplug.drivers.steps import Macvlan, Veth
from netplug.kernel.fake.kernel import FakeKernel

FLAGS = run_path(str(Path(__file__).parents[1] / "integration" / "flags_table.py"))
MODES, WORKS, IGNORED, REFUSED = (FLAGS[name] for name in ("MODES", "WORKS", "IGNORED", "REFUSED"))
NEWER = [row for row in FLAGS["TABLE"] if row.since]
ENGINES = ("28.5", "29.7")
STUB_OPTIONS = {"a"}
"""Network options of the recorded stub, refused by us. That they are is shown by `test_docker_replay.py`."""

Body = dict[str, Any]


class RefusedError(Exception):
    """The plugin refused a request."""


class Session:
    """Sends the requests of recorded commands, with the first network in a mode; keeps the answers to Join."""

    def __init__(self, plugin: Plugin, engine: str, mode: str) -> None:
        self.plugin = plugin
        self.mode = mode
        self.joined: list[Body] = []
        self._folder = FIXTURES / engine

    async def play(self, recording: str, *commands: str, keeping: str = "") -> None:
        """Send what Docker sent for each command that has the words; `keeping`: an option of the stub's to be sent."""
        for words in commands:
            found = self._steps(recording, words)
            assert found, f"{recording}: no command with {words!r}"
            for row in found:
                await self._send(row["path"], self._ours(row["path"], row["body"], keeping))

    def _steps(self, recording: str, words: str) -> list[Any]:
        """Return the requests of the first command that has the words."""
        found: list[Any] = []
        matched = False
        for line in (self._folder / f"{recording}.jsonl").read_text().splitlines():
            row = json.loads(line)
            if "path" not in row:
                if found:
                    break
                matched = words in row.get("step", "")
            elif matched:
                found.append(row)
        return found

    def _ours(self, path: str, body: Body | None, keeping: str) -> Body | None:
        if path.endswith(("GwAllocCheck", "CreateNetwork")) and body:
            options = body["Options"][GENERIC]
            for key in STUB_OPTIONS & options.keys():
                del options[key]
            if not self.plugin.engine.registry.networks():
                options["mode"] = self.mode
                if self.mode == "macvlan":
                    options["parent"] = "eth0"
        elif path.endswith("CreateEndpoint") and body:
            body["Options"] = {
                key: value for key, value in body["Options"].items() if key.startswith("com.docker.") or key == keeping
            }
        return body

    async def _send(self, path: str, body: Body | None) -> None:
        answer = await self.plugin.call(path, body)
        if answer.status != 200:
            raise RefusedError(answer.error)
        if path.endswith(".Join"):
            self.joined.append(answer.body)

    def published(self) -> list[str]:
        """Return the addresses to which published ports lead."""
        return [str(led_to(step)[0]) for step in self.plugin.kernel.leads()]


async def ipv6_alone(session: Session) -> bool:
    await session.play("01_handshake_network_create", "--ipv4=false")
    (record,) = session.plugin.engine.registry.networks()
    assert list(record.network.families()) == [6]
    asked = endpoint(address="") | {"NetworkID": record.network.id}
    asked["Interface"]["AddressIPv6"] = "fd00:89::2/64"
    ref = {"NetworkID": record.network.id, "EndpointID": asked["EndpointID"]}
    given = (await session.plugin.ok("/NetworkDriver.CreateEndpoint", asked))["Interface"]
    assert given.keys() <= {"MacAddress"}, "no IPv4 address is added"
    joined = await session.plugin.ok("/NetworkDriver.Join", ref | {"SandboxKey": "/var/run/docker/netns/1"})
    assert "Gateway" not in joined
    return joined.get("GatewayIPv6") == "fd00:89::1"


async def gateway_moves(session: Session) -> bool:
    """The way out, and the published port with it, goes to Docker's own network, comes back, and goes to the other."""
    recording, ours = "03_connect_disconnect", session.mode == "bridge"
    await session.play(recording, " n1", " n2", "run -d --name c1 ", "connect --ip 10.79.0.77")
    commands = ("connect --gw-priority 10 br1", "disconnect br1", "disconnect n1", "disconnect -f n2")
    targets = [session.published()]
    for command in commands:
        await session.play(recording, command)
        targets.append(session.published())
    first, second = ["10.80.0.2"] * ours, ["10.79.0.77"]
    assert targets == [first, [], first, second, []]
    return session.joined[0].get("Gateway") == "10.80.0.1"


async def several_networks(session: Session) -> bool:
    """Both have the container, and both offer a way out, of which Docker takes one; but mode none has none."""
    await session.play("02_run_options", "-ipv6 --subnet fd00:80::/64 n1", " n0", "--name twonets")
    by_network = {end.endpoint.network: end for end in session.plugin.engine.registry.endpoints()}
    offered = [answer.get("Gateway") for answer in session.joined]
    assert sorted(filter(None, offered)) == ["10.79.0.1", *["10.80.0.1"] * (session.mode != "none")]
    return len(by_network) == 2 and all(end.linked for end in by_network.values())


def run(name: str, seen: Callable[[Session], bool], *, keeping: str = "") -> Callable[[Session], Awaitable[bool]]:
    """Return a check that runs a container as recorded, and looks."""

    async def check(session: Session) -> bool:
        create = "--gateway 10.80.0.1 --ipv6 --subnet fd00:80::/64 n1"
        await session.play("02_run_options", create, f"--name {name} ", keeping=keeping)
        return seen(session)

    return check


def offers_a_way_out(session: Session) -> bool:
    (answer,) = session.joined
    return (answer.get("Gateway"), answer.get("GatewayIPv6")) == ("10.80.0.1", "fd00:80::1")


def has_the_mac(session: Session) -> bool:
    (built,) = session.plugin.engine.registry.endpoints()
    links = [step for step in built.plan if isinstance(step, Veth | Macvlan)]
    macs = [step.peer_mac if isinstance(step, Veth) else step.mac for step in links]
    return macs == ["02:42:ac:11:65:43"]


def has_an_interface(session: Session) -> bool:
    """Docker sets them itself, on the interface that we name."""
    (answer,) = session.joined
    return "InterfaceName" in answer


def has_the_name(session: Session) -> bool:
    """A plugin can only tell Docker a prefix."""
    (answer,) = session.joined
    return bool(answer.get("InterfaceName", {}).get("DstPrefix", "").startswith("foo"))


CHECKS: dict[str, Callable[[Session], Awaitable[bool]]] = {
    "network create --ipv4=false --ipv6": ipv6_alone,
    "network connect --gw-priority": gateway_moves,
    "run --network NET --network NET2": several_networks,
    "run --network name=NET,mac-address=MAC": run("static", has_the_mac),
    "run --network name=NET,gw-priority=N": run("gwprio", offers_a_way_out),
    f"run --network name=NET,driver-opt={FLAGS['SYSCTLS']}=…": run("drvopt", has_an_interface),
    f"run --network name=NET,driver-opt={FLAGS['IFNAME']}=…": run("ifname", has_the_name),
    "run --network name=NET,driver-opt=vif.kind=fast": run("drvopt", bool, keeping="vif.kind"),
}


@pytest_asyncio.fixture
async def plugin() -> AsyncIterator[Plugin]:
    kernel = FakeKernel()
    kernel.foreign.links["eth0"] = ""
    plugin = await Plugin.start(kernel)
    yield plugin
    await plugin.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", NEWER, ids=lambda row: row.name)
async def test_flag_does_what_the_table_says(plugin: Plugin, row: Any, mode: str, engine: str) -> None:
    session, cell = Session(plugin, engine, mode), row.cell(mode)
    if cell.startswith(REFUSED):
        with pytest.raises(RefusedError, match=cell.removeprefix(REFUSED)):
            await CHECKS[row.name](session)
        assert not plugin.engine.registry.endpoints()
        return
    assert await CHECKS[row.name](session) is {WORKS: True, IGNORED: False}[cell]


def test_every_row_has_its_check() -> None:
    assert [row.name for row in NEWER] == list(CHECKS)


@pytest.mark.parametrize("mode", ["macvlan", "none"])
async def test_mode_without_gateway_of_ours_is_given_none(plugin: Plugin, mode: str) -> None:
    """29 then sends no gateway with the network, and may give its first address to a container."""
    session = Session(plugin, "29.7", mode)
    check = {"Options": {GENERIC: {"mode": mode}}}
    assert await plugin.ok("/NetworkDriver.GwAllocCheck", check) == {"SkipIPv4": True, "SkipIPv6": True}
    await session.play("08_join_variants", "--subnet 10.82.0.0/16 n3", "--name sk ")
    (built,) = plugin.engine.registry.endpoints()
    (answer,) = session.joined
    assert [str(address) for address in built.endpoint.addresses] == ["10.82.0.1/16"] * (mode == "macvlan")
    assert "Gateway" not in answer
    assert answer["DisableGatewayService"] is True, "no interface on docker_gwbridge instead"
