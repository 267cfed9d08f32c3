"""CNI and netavark with runtimes as they are: that keep ports, name all mappings twice, or share a network."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from engine_host import Host, consistent
from structlog.testing import capture_logs

from netplug.drivers import port_ranges
from netplug.drivers.steps import HostPort, Proto, Route, Veth
from netplug.engine.records import AttachSpec, NetworkSpec, SubnetSpec
from netplug.frontends.cni.service import CniService
from netplug.frontends.cni.wire import Call
from netplug.kernel.host import runtimes

NETNS = "/run/netns/box"
ID = "c0" * 32
RUNTIME = 4711
SUBNETS = {"blue": "10.1.0.0/24", "red": "10.2.0.0/24", "six": "fd00:6::/64"}
Started = Callable[[str], int]


class Plugin:
    """The plugin of a host, as runtimes see it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    async def call(
        self,
        command: str,
        network: str = "blue",
        container: str = ID,
        netns: str = NETNS,
        pid: int = 0,
        args: str = "",
        **config: Any,
    ) -> dict[str, Any]:
        config = {"type": "pynet", "ipam": {"type": "netplug-ipam", "subnet": SUBNETS[network]}} | config
        env = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": f"e{network}"}
        env |= {"CNI_ARGS": args}
        name = "netplug-ipam" if config["type"] == "bridge" else "pynet"
        text = {"cniVersion": "1.1.0", "name": network} | config
        reply = await CniService(self.host.engine).answer(Call(name, env, json.dumps(text).encode(), pid))
        answer: dict[str, Any] = json.loads(reply.stdout) if reply.stdout else {}
        return answer

    async def add(self, network: str = "blue", *ports: tuple[int, int], **more: Any) -> dict[str, Any]:
        mappings = [{"hostPort": outer, "containerPort": inner} for outer, inner in ports]
        return await self.call("ADD", network, runtimeConfig={"portMappings": mappings}, **more)

    async def create(self, **network: Any) -> dict[str, Any]:
        """Ask as netavark does when podman makes a network."""
        wanted = {"name": "blue", "id": "b" * 64, "driver": "pynet"} | network
        call = Call("pynet", {"NETAVARK_COMMAND": "create"}, json.dumps(wanted).encode())
        answer: dict[str, Any] = json.loads((await CniService(self.host.engine).answer(call)).stdout)
        return answer

    async def teardown(self, network: str, ifname: str) -> None:
        wanted = {
            "container_id": ID,
            "network": {"name": network, "id": "b" * 64, "driver": "pynet"},
            "network_options": {"interface_name": ifname},
        }
        call = Call("pynet", {"NETAVARK_COMMAND": "teardown"}, json.dumps(wanted).encode())
        assert (await CniService(self.host.engine).answer(call)).code == 0

    async def enter(
        self, network: str, ifname: str, options: dict[str, str] | None = None, own: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Ask as netavark does for one of a container's networks."""
        subnets = [{"subnet": SUBNETS[network]}]
        wanted = {
            "container_id": ID,
            "container_name": "web",
            "network": {"name": network, "id": "b" * 64, "driver": "pynet", "subnets": subnets, "options": options},
            "network_options": {"interface_name": ifname, "options": own},
        }
        env = {"NETAVARK_COMMAND": "setup", "NETAVARK_NETNS": NETNS}
        reply = await CniService(self.host.engine).answer(Call("pynet", env, json.dumps(wanted).encode()))
        answer: dict[str, Any] = json.loads(reply.stdout)
        return answer

    def ways(self) -> list[str]:
        """Return the default routes in the sandbox."""
        routes = (step for step in self.host.kernel._world.state.values() if isinstance(step, Route))
        found = (step for step in routes if step.netns and not step.destination.prefixlen)
        return [f"{step.link} metric {step.metric}" for step in found]

    async def setup(
        self, container: str = ID, netns: str = NETNS, dns: Sequence[str] = (), **port: Any
    ) -> dict[str, Any]:
        """Ask as netavark does, for one port. `dns`: whom the network's name server shall ask."""
        network = {"name": "blue", "id": "b" * 64, "driver": "pynet", "subnets": [{"subnet": SUBNETS["blue"]}]}
        wanted = {
            "container_id": container,
            "container_name": "web",
            "port_mappings": [{"container_port": 80, "host_port": 8080, "host_ip": "", "protocol": "tcp"} | port],
            "network": network | ({"network_dns_servers": dns} if dns else {}),
            "network_options": {"interface_name": "eth0"},
        }
        env = {"NETAVARK_COMMAND": "setup", "NETAVARK_NETNS": netns}
        reply = await CniService(self.host.engine).answer(Call("pynet", env, json.dumps(wanted).encode()))
        answer: dict[str, Any] = json.loads(reply.stdout)
        return answer

    def published(self) -> dict[str, list[str]]:
        """Return what is published, by network."""
        names = {one.network.id: one.network.name for one in self.host.networks()}
        return {
            names[one.endpoint.network]: [
                f"{port.address} {port.port}"
                for step in one.exposed
                for port in port_ranges.each(step)
                if isinstance(port, HostPort)
            ]
            for one in self.host.endpoints()
        }

    def containers(self) -> list[str]:
        return sorted(one.container for one in self.host.endpoints())


@pytest.fixture
async def plugin() -> AsyncIterator[Plugin]:
    async with consistent() as host:
        yield Plugin(host)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """Start runtimes, by the names of their programs, that have called a plugin; return the plugin's process."""
    with ExitStack() as stack:

        def start(name: str, plugin: str = "cat") -> int:
            program = tmp_path / name
            if not program.exists():
                shutil.copy("/bin/sh", program)
            call = [program, "-c", f"exec 3<&0; {plugin} <&3 & echo $!; wait"]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            runtime = stack.enter_context(subprocess.Popen(call, text=True, **pipes))
            assert runtime.stdout
            return int(runtime.stdout.readline())

        yield start


@pytest.fixture
def hook() -> Iterator[Callable[[Path], int]]:
    """Start a process in a folder."""
    with ExitStack() as stack:

        def start(folder: Path) -> int:
            return stack.enter_context(subprocess.Popen(["cat"], cwd=folder, stdin=subprocess.PIPE)).pid

        yield start


# Ports that the runtime keeps


async def test_port_that_the_runtime_keeps_is_published(plugin: Plugin) -> None:
    plugin.host.kernel.foreign.reserved[RUNTIME] = {(Proto.TCP, ip_address("0.0.0.0"), 8080)}
    refused = await plugin.add("blue", (8080, 80))
    assert (refused["code"], "8080" in refused["msg"]) == (11, True)
    assert (await plugin.add("blue", (8080, 80), pid=RUNTIME))["ips"]
    assert plugin.published() == {"blue": ["0.0.0.0 8080"]}
    # Its container is still the only one.
    refused = await plugin.add("blue", (8080, 80), container="c1" * 32, netns="/run/netns/other", pid=RUNTIME)
    assert (refused["code"], "8080" in refused["msg"]) == (11, True)
    await plugin.host.reboot()
    assert (await plugin.call("DEL")) == {}
    assert plugin.published() == {}


async def test_port_that_is_kept_for_the_container_is_published(plugin: Plugin) -> None:
    """As by podman's conmon, when a network is connected later."""
    plugin.host.kernel.foreign.reserved[ID] = {(Proto.TCP, ip_address("0.0.0.0"), 8080)}
    assert (await plugin.add("blue", (8080, 80), pid=RUNTIME))["ips"]


# Names

BUNDLE = {"annotations": {"nerdctl/name": "web", "nerdctl/hostname": ID[:12], "n": 1}}


@pytest.mark.parametrize(
    ("folder", "bundle", "names"),
    [
        (ID, json.dumps(BUNDLE), ["web", "inner"]),
        ("c1" * 32, json.dumps(BUNDLE), ["inner"]),
        (ID, "{", ["inner"]),
        (ID, "[]", ["inner"]),
        (ID, json.dumps({"annotations": None}), ["inner"]),
        (ID, None, ["inner"]),
    ],
    ids=["bundle", "of another", "half", "list", "none", "no file"],
)
async def test_nerdctls_containers_have_their_names(
    plugin: Plugin, tmp_path: Path, hook: Callable[[Path], int], folder: str, bundle: str | None, names: list[str]
) -> None:
    """nerdctl sends the hostname alone; it calls from a hook, which runs in the container's bundle."""
    place = tmp_path / folder
    place.mkdir()
    if bundle is not None:
        (place / "config.json").write_text(bundle)
    args = "IgnoreUnknown=1;NERDCTL_CNI_DHCP_HOSTNAME=inner"
    await plugin.add("blue", container=f"default-{ID}", pid=hook(place), args=args)
    (built,) = plugin.host.endpoints()
    assert [built.name, *built.aliases] == names


# Containers that end before their runtime says so


async def test_what_goes_with_a_dead_container_is_not_called_mended(plugin: Plugin) -> None:
    await plugin.add()
    (built,) = plugin.host.endpoints()
    plugin.host.kernel.vanish(NETNS)
    plugin.host.kernel.lose(next(step.key for step in built.plan if isinstance(step, Veth)))
    with capture_logs() as logs:
        await plugin.host.reconciler.repair()
    assert [it["event"] for it in logs if it["log_level"] in {"info", "warning"}] == [
        "endpoint.dead",
        "endpoint.deleted",
    ]
    assert await plugin.call("DEL") == {}


# Ranges of ports, by netavark


@pytest.mark.parametrize(("count", "host_port"), [(0, 65535), (1, 65535), (2, 65534)])
async def test_range_of_ports_is_published(plugin: Plugin, count: int, host_port: int) -> None:
    assert "interfaces" in await plugin.setup(range=count, host_port=host_port)
    assert plugin.published() == {"blue": [f"0.0.0.0 {port}" for port in range(host_port, 65536)]}


@pytest.mark.parametrize(
    ("port", "words"),
    [
        ({"range": 65536}, "port_mappings.0.range must be at most 65535, not 65536"),
        ({"range": 10**12}, "port_mappings.0.range must be at most 65535, not 1000000000000"),
        ({"range": -1}, "port_mappings.0.range must be at least 0, not -1"),
        ({"range": 3, "host_port": 65534}, "port 65534:80 and 2 more: not all are from 1 to 65535"),
        ({"range": 2, "container_port": 65535}, "port 8080:65535 and 1 more: not all are from 1 to 65535"),
        ({"host_port": 0}, "port 0:80: not all are from 1 to 65535"),
    ],
)
async def test_range_of_ports_that_there_are_not_is_refused(plugin: Plugin, port: dict[str, int], words: str) -> None:
    assert await plugin.setup(**port) == {"error": words}
    assert plugin.host.networks() == []


# One list of ports for each network


async def test_ports_are_published_once_and_move_to_what_is_left(plugin: Plugin) -> None:
    ports = ((8080, 80), (8081, 81))
    assert (await plugin.add("blue", *ports))["ips"]
    assert (await plugin.add("red", *ports))["ips"]
    both = ["0.0.0.0 8080", "0.0.0.0 8081"]
    assert plugin.published() == {"blue": both, "red": []}
    plugin.host.kernel.foreign.ports.add((Proto.TCP, ip_address("0.0.0.0"), 8080))  # its runtime's, by now
    await plugin.call("DEL", "blue")
    assert plugin.published() == {"red": both}
    await plugin.host.check()
    await plugin.host.reboot()
    await plugin.call("DEL", "red")


async def test_another_network_publishes_the_other_family(plugin: Plugin) -> None:
    assert (await plugin.add("blue", (8080, 80)))["ips"]
    assert (await plugin.add("six", (8080, 80)))["ips"]
    assert plugin.published() == {"blue": ["0.0.0.0 8080"], "six": [":: 8080"]}
    await plugin.call("DEL", "blue")
    assert plugin.published() == {"six": [":: 8080"]}
    await plugin.call("DEL", "six")


async def test_other_containers_port_is_refused_also_on_another_network(plugin: Plugin) -> None:
    assert (await plugin.add("blue", (8080, 80)))["ips"]
    refused = await plugin.add("red", (8080, 80), container="c1" * 32, netns="/run/netns/other")
    assert (refused["code"], "8080" in refused["msg"]) == (11, True)
    refused = await plugin.add("red", (8080, 81))  # the same container, and it cannot be both
    assert (refused["code"], "8080" in refused["msg"]) == (11, True)
    await plugin.call("DEL", "blue")


async def test_networks_that_come_at_once_share_the_ports(plugin: Plugin) -> None:
    """As containerd's do."""
    made = await asyncio.gather(plugin.add("blue", (8080, 80)), plugin.add("red", (8080, 80)))
    assert all(one["ips"] for one in made)
    assert sorted(map(len, plugin.published().values())) == [0, 1]
    await asyncio.gather(plugin.call("DEL", "blue"), plugin.call("DEL", "red"))


async def test_ports_do_not_move_to_a_sandbox_that_is_gone(plugin: Plugin) -> None:
    await plugin.add("blue", (8080, 80))
    await plugin.add("red", (8080, 80))
    plugin.host.kernel.vanish(NETNS)
    await plugin.call("DEL", "blue", netns="")
    assert plugin.published() == {"red": []}
    await plugin.call("DEL", "red", netns="")


# Default routes, by netavark


@pytest.mark.parametrize(
    ("blue", "red", "expected"),
    [
        ({}, {}, "eth0 metric 0"),
        ({"metric": "200"}, {}, "eth1 metric 0"),
        ({}, {"metric": "50"}, "eth1 metric 50"),
        ({}, {"metric": "200"}, "eth0 metric 0"),
        ({"metric": "50"}, {"metric": "60"}, "eth0 metric 50"),
        ({"metric": "50"}, {"metric": "60", "gw_priority": "1"}, "eth1 metric 60"),
        ({"no_default_route": "true"}, {}, "eth1 metric 0"),
        ({"no_default_route": "1", "isolate": "strict"}, {"no_default_route": "true"}, ""),
    ],
)
async def test_metric_ranks_networks_as_podman_users_mean_it(
    plugin: Plugin, blue: dict[str, str], red: dict[str, str], expected: str
) -> None:
    assert "interfaces" in await plugin.enter("blue", "eth0", blue)
    assert "interfaces" in await plugin.enter("red", "eth1", red)
    assert plugin.ways() == ([expected] if expected else [])
    await plugin.host.check()
    for network, ifname in (("blue", "eth0"), ("red", "eth1")) if "eth0" in expected else ():
        assert plugin.ways()
        await plugin.teardown(network, ifname)
    for network, ifname in (("red", "eth1"), ("blue", "eth0")):
        await plugin.teardown(network, ifname)
    assert plugin.ways() == []


@pytest.mark.parametrize("runtime", ["cni", "netavark", "api"])
async def test_deletion_that_overtakes_the_answer_to_a_creation_deletes(plugin: Plugin, runtime: str) -> None:
    """A runtime that is killed in the middle of an ADD sends a DEL, while the ADD still goes on."""
    turns = 0
    await plugin.add("red", container="other")
    if runtime == "api":
        await plugin.host.engine.networks.create(NetworkSpec(name="lan", subnets=(SubnetSpec(v6=False),)))

    def create() -> Coroutine[Any, Any, Any]:
        match runtime:
            case "cni":
                return plugin.add("blue", (8080, 80))
            case "netavark":
                return plugin.setup()
        return plugin.host.engine.endpoints.attach(AttachSpec("lan", NETNS, "elan"))

    def delete() -> Coroutine[Any, Any, Any]:
        match runtime:
            case "cni":
                return plugin.call("DEL")
            case "netavark":
                return plugin.teardown("blue", "eth0")
        return plugin.host.engine.endpoints.detach("lan", NETNS, "elan")

    created = False
    while not created:
        turns += 1
        creating = asyncio.ensure_future(create())
        for _ in range(turns):
            await asyncio.sleep(0)
        created = creating.done()
        await delete()
        await creating
        assert plugin.containers() == ["other"], f"deleted after {turns} turns of the event loop"
    assert turns > 10


async def test_container_has_options_of_its_own(plugin: Plugin) -> None:
    await plugin.enter("blue", "eth0")
    assert "interfaces" in await plugin.enter("red", "eth1", own={"gw_priority": "1"})
    assert plugin.ways() == ["eth1 metric 0"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "-1"}, "option metric='-1': must be a number from 0 to 4294967295"),
        ({"metric": "4294967296"}, "option metric='4294967296': must be a number from 0 to 4294967295"),
        ({"no_default_route": "perhaps"}, "option no_default_route='perhaps': must be true or false"),
        ({"no_default_route": "true", "metric": "5"}, "option 'metric' is about a default route, and no_default_route"),
        ({"isolate": "false"}, "option isolate='false': networks of netplug never reach each other (leave it out)"),
        ({"vrf": "red"}, "unknown option 'vrf'"),
    ],
)
async def test_options_of_netavark_that_cannot_be_had_are_refused(
    plugin: Plugin, options: dict[str, str], words: str
) -> None:
    assert words in (await plugin.enter("blue", "eth0", options))["error"]
    assert plugin.host.networks() == []


# Networks that podman tells of when they are made, and not when they are removed


def on_lan(parent: str, first: str, last: str) -> dict[str, Any]:
    part = {"start_ip": first, "end_ip": last}
    return {
        "options": {"mode": "macvlan", "parent": parent},
        "subnets": [{"subnet": "192.168.1.0/24", "gateway": "192.168.1.1", "lease_range": part}],
    }


async def test_network_of_podmans_is_not_in_the_way_of_one_on_the_same_lan(plugin: Plugin) -> None:
    plugin.host.kernel.foreign.links |= {"eth1": "", "eth2": ""}
    lower, upper = on_lan("eth1", "192.168.1.2", "192.168.1.99"), on_lan("eth2", "192.168.1.100", "192.168.1.199")
    names = []
    for name, wanted in (("one", lower), ("two", upper), ("again", upper)):
        assert (await plugin.create(name=name, **wanted))["subnets"] == wanted["subnets"]
        names.append(sorted(one.network.name for one in plugin.host.networks()))
    assert names == [["one"], ["one", "two"], ["again", "one"]]
    assert "subnets" in await plugin.create(name="bridge", subnets=[{"subnet": "192.168.1.0/25"}])
    assert [one.network.name for one in plugin.host.networks()] == ["bridge"]


async def test_network_that_podman_makes_anew_is_as_it_says_now(plugin: Plugin) -> None:
    subnets = [{"subnet": "10.1.0.0/24"}]
    await plugin.create(internal=True, options={"icc": "false"}, subnets=subnets)
    assert "unknown option 'x'" in (await plugin.create(options={"x": "y"}))["error"]
    (before,) = plugin.host.networks()
    assert before.network.internal
    await plugin.create(options={"com.docker.network.driver.mtu": "1400"}, subnets=subnets)
    (made,) = plugin.host.networks()
    assert (made.network.internal, made.network.options.icc, made.network.options.mtu) == (False, True, 1400)
    await plugin.setup()
    assert "mtu is 1400, not 1300" in (await plugin.create(options={"com.docker.network.driver.mtu": "1300"}))["error"]
    assert plugin.host.networks() == [made]


async def test_network_that_podman_updates_asks_whom_it_says_now(plugin: Plugin) -> None:
    for number, dns in enumerate((["192.0.2.7"], ["192.0.2.7", "192.0.2.8"], [])):
        said = await plugin.setup(f"c{number}" * 32, f"/run/netns/{number}", dns, host_port=8080 + number)
        assert "interfaces" in said
        (record,) = plugin.host.networks()
        assert record.network.options.dns_upstream == tuple(dns)
    assert len(plugin.containers()) == 3
    await plugin.host.reboot()
    assert plugin.host.networks() == [record]


# GC


async def test_gc_leaves_what_another_runtime_attached(plugin: Plugin, started: Started) -> None:
    ours, theirs = started("crio"), started("containerd")
    for number, pid in enumerate((ours, ours, theirs, theirs)):
        netns = f"/run/netns/{number}"
        assert (await plugin.add(container=f"c{number}", netns=netns, pid=pid))["ips"]
    plugin.host.kernel.vanish("/run/netns/3")
    listed = {"cni.dev/valid-attachments": [{"containerID": "c0", "ifname": "eblue"}]}
    assert await plugin.call("GC", pid=ours, **listed) == {}
    assert plugin.containers() == ["c0", "c2"]
    assert await plugin.call("GC", pid=theirs, **{"cni.dev/valid-attachments": None}) == {}
    assert plugin.containers() == ["c0"]
    assert await plugin.call("GC", pid=ours, **{"cni.dev/attachments": []}) == {}
    assert plugin.host.networks() == []


async def test_gc_of_addresses_leaves_what_another_runtime_leased(plugin: Plugin, started: Started) -> None:
    """Each runs the same plugin, which runs ours: that one is not the runtime."""
    ours, theirs = (started(name, "env CNI_COMMAND=ADD sh -c 'cat; true'") for name in ("crio", "containerd"))
    for number, pid in enumerate((ours, theirs, theirs)):
        netns = f"/run/netns/{number}"
        assert (await plugin.call("ADD", container=f"c{number}", netns=netns, pid=pid, type="bridge"))["ips"]
    plugin.host.kernel.vanish("/run/netns/2")
    assert await plugin.call("GC", pid=ours, type="bridge", **{"cni.dev/valid-attachments": []}) == {}
    assert plugin.containers() == ["c1"]
    assert await plugin.call("GC", pid=theirs, type="bridge", **{"cni.dev/valid-attachments": []}) == {}
    assert plugin.containers() == []


def test_runtime_that_starts_anew_is_the_same_and_a_second_one_is_not(started: Started) -> None:
    first, second = runtimes.calling_runtime(started("crio")), runtimes.calling_runtime(started("crio"))
    assert first.partition(" ")[0].endswith("/crio")
    assert runtimes.same_runtime(first, first)
    assert not runtimes.same_runtime(first, second)
    program, pid, _ = first.rsplit(" ", 2)
    assert runtimes.same_runtime(f"{program} {pid} 1", second)  # that process has ended, whoever has its number now
    assert not runtimes.same_runtime(f"/usr/bin/other {pid} 1", second)
    assert runtimes.calling_runtime(1 << 22) == ""


async def test_gc_that_does_not_say_what_is_attached_is_told_so(plugin: Plugin) -> None:
    await plugin.add()
    refused = await plugin.call("GC")
    assert (refused["code"], refused["msg"]) == (
        7,
        "cni.dev/valid-attachments is missing: GC has to be told what is still attached",
    )
    assert (await plugin.call("GC", **{"cni.dev/valid-attachments": {"a": 1}}))["code"] == 7
    assert plugin.containers() == [ID]
    await plugin.call("DEL")


async def test_network_that_differs_says_in_what_and_who_is_in_it(plugin: Plugin) -> None:
    await plugin.setup()
    ranges_ = {"lease_range": {"start_ip": "10.1.0.10", "end_ip": "10.1.0.20"}}
    said = await plugin.create(subnets=[{"subnet": "10.5.0.0/24"}], options={"mtu": "1400"})
    assert said["error"] == (
        "network 'blue' exists and differs: mtu is 1500, not 1400; subnet is 10.1.0.0/24, not 10.5.0.0/24"
        "; in it: container web (choose another name, or remove first what is in the network)"
    )
    said = await plugin.create(subnets=[{"subnet": "10.1.0.0/24", "gateway": "10.1.0.9"} | ranges_])
    assert "gateway of 10.1.0.0/24 is 10.1.0.1, not 10.1.0.9; range of 10.1.0.0/24 is all, not 10.1" in said["error"]
    mine = await plugin.host.cli_network("10.6.0.0/24", name="mine")
    said = await plugin.create(name="mine", subnets=[{"subnet": "10.7.0.0/24"}])
    assert said["error"] == (
        "network 'mine' exists and differs: subnet is 10.6.0.0/24, not 10.7.0.0/24; it was made by cli "
        "(choose another name, say what it is like, or remove it: netplug network rm mine)"
    )
    assert (await plugin.create(name="mine", subnets=[{"subnet": "10.6.0.0/24"}]))["name"] == mine.network.name


async def test_network_of_dockers_in_the_way_is_named_with_both_commands(plugin: Plugin) -> None:
    """Docker may have lost it, and then `docker network rm` does not find it."""
    lost = (await plugin.host.docker_network("d0" * 32)).network
    words = f"remove it: docker network rm {lost.name}, or if not found netplug network rm {lost.name})"
    said = await plugin.create(name=lost.name, subnets=[{"subnet": "10.7.0.0/24"}])
    assert words in said["error"]
    said = await plugin.create(subnets=[{"subnet": "10.1.0.0/24"}])
    assert words.replace("it:", "that network:") in said["error"]


@pytest.mark.parametrize("restarted", [False, True])
async def test_address_of_a_container_that_died_without_a_word_goes_to_its_next_life(
    plugin: Plugin, *, restarted: bool
) -> None:
    """nerdctl starts a container again under its id, and after a loss of power nobody has sent a DEL."""
    assert (await plugin.call("ADD", type="bridge"))["ips"]
    plugin.host.kernel.vanish(NETNS)
    if restarted:
        await plugin.host.reboot()
    assert (await plugin.call("ADD", type="bridge", netns="/run/netns/next"))["ips"]
    (built,) = plugin.host.endpoints()
    assert built.sandbox == "/run/netns/next"
    assert (await plugin.call("ADD", type="bridge", netns="/run/netns/other"))["code"] == 101
    await plugin.call("DEL", type="bridge")
    assert plugin.host.leases()[0].owner.name == "blue"
    assert len(plugin.host.leases()) == 1
