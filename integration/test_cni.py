"""The CNI plugin with the daemon: every command in every version of the specification, in real namespaces.

That nothing is left is asserted by the leak check of every test, see `conftest.py`.
"""

import json
import signal
from contextlib import ExitStack
from functools import partial

import pytest
from harness import (
    BIN_DIR,
    PYNET,
    RANGES4,
    RANGES46,
    VERSIONS,
    Attached,
    Host,
    Namespace,
    Netplug,
    PluginError,
    Runtime,
    addresses_of,
    cni_attached,
    cni_list,
    cni_refusal,
    default_gateway,
    execute,
    links_of,
    namespace,
    own_ipam,
    wait_until,
)


@pytest.fixture(scope="module", autouse=True)
def plugin(netplug: Netplug) -> str:
    """The executable's path."""
    return netplug.cli("cni", "install", "--bin-dir", BIN_DIR)


def test_namespace_made_anew_at_the_same_path(host: Host, netplug: Netplug) -> None:
    """A late DEL of the former life takes nothing of the present one, whatever it gives as the container's id."""
    with cni_list(host, netplug, PYNET | own_ipam(RANGES4), version="1.1.0") as it, namespace(host) as netns:
        for same in (False, True):
            old = it.add(netns, container="old")
            host.output("ip", "netns", "del", netns.name)
            host.output("ip", "netns", "add", netns.name)
            new = it.add(netns, container="old" if same else "new")
            it.delete(old)
            assert [one["container"] for one in netplug.json("ps", "--network", it.name)] == [new.container]
            assert default_gateway(netns, "-4") == "10.91.0.1"
            assert netns.pings("10.91.0.1")
            it.check(new)
            it.delete(new)


# Every command in every version

ADDRESSING = {"v4": RANGES4, "v6": [[{"subnet": "fd00:91::/64"}]], "both": RANGES46}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("families", ADDRESSING)
def test_life_of_a_container(host: Host, netplug: Netplug, version: str, families: str) -> None:
    """ADD makes what it says in its version's words; CHECK agrees; DEL takes it away and may be said again."""
    with cni_list(host, netplug, PYNET | own_ipam(ADDRESSING[families]), version=version) as it:
        with cni_attached(it) as (netns, one):
            result = one.result
            assert result["cniVersion"] == version
            assert {ip.partition("/")[0] for ip in addresses_of(netns)} == set(one.addresses)
            wanted = {"v4": ["10.91.0.2"], "v6": ["fd00:91::2"], "both": ["10.91.0.2", "fd00:91::2"]}[families]
            assert one.addresses == wanted
            for address in one.addresses:
                gateway = "fd00:91::1" if ":" in address else "10.91.0.1"
                assert default_gateway(netns, "-6" if ":" in address else "-4") == gateway
                assert netns.pings(gateway)
            if version >= "0.3.0":
                assert_interfaces(host, netns, one, version)
            if version >= "0.4.0":
                it.check(one)
            if version >= "1.1.0":
                it.status()
        # `cni_attached` said DEL; once more, and with nothing left to go by.
        it.delete(one)
        it.delete(one, netns="", bare=True)
        assert netplug.json("ps", "--network", it.name) == []


def assert_interfaces(host: Host, netns: Namespace, one: Attached, version: str) -> None:
    bridge, outer, inner = one.result["interfaces"]
    assert (inner["name"], inner["sandbox"]) == ("eth0", one.netns)
    assert "sandbox" not in bridge | outer
    for link, place in ((bridge, host.output), (outer, host.output), (inner, netns.exec)):
        (found,) = json.loads(place("ip", "-j", "link", "show", link["name"]))
        assert link["mac"] == found["address"]
        assert link.get("mtu") == (found["mtu"] if version >= "1.1.0" else None)
    for ip in one.result["ips"]:
        assert ip["interface"] == 2
        assert ip.get("version") == (None if version >= "1.0.0" else "6" if ":" in ip["address"] else "4")


@pytest.mark.parametrize("version", VERSIONS)
def test_command_that_a_version_has_not(host: Host, netplug: Netplug, version: str) -> None:
    with cni_list(host, netplug, PYNET, version=version) as it:
        refused = {
            "0.4.0": [lambda: it.check(Attached("c", "/run/netns/x", "eth0", "", {}))],
            "1.1.0": [it.status, it.gc],
        }
        for since, commands in refused.items():
            for command in commands:
                if version < since:
                    with pytest.raises(PluginError, match="config version does not allow") as caught:
                        command()
                    assert caught.value.code == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_result_that_a_version_cannot_say(host: Host, netplug: Netplug, version: str) -> None:
    """Without an address, and with two of a family."""
    cases = {
        "no valid IP addresses": {"ipam": {}},
        "more than 1 address per family": own_ipam([*RANGES4, [{"subnet": "10.93.0.0/24"}]]),
    }
    for words, plugin in cases.items():
        with cni_list(host, netplug, PYNET | plugin, version=version) as it:
            if version < "0.3.0":
                assert words in cni_refusal(it).text
            else:
                with cni_attached(it) as (netns, one):
                    assert len(addresses_of(netns)) == len(one.result.get("ips", ())) == (0 if "no" in words else 2)
                    assert links_of(netns) == ["eth0", "lo"]


@pytest.mark.parametrize("version", [*VERSIONS, "0.5.5"])
def test_version_needs_no_daemon_nor_known_version(host: Host, plugin: str, version: str) -> None:
    env = {"CNI_COMMAND": "VERSION", "NETPLUG_RUN_DIR": "/nowhere", "CNI_NETNS": "dummy", "CNI_PATH": "dummy"}
    answer = execute(host, plugin, json.dumps({"cniVersion": version}), env)
    assert answer == {"cniVersion": version, "supportedVersions": list(VERSIONS)}


def test_executable_tells_about_itself(host: Host, plugin: str) -> None:
    done = host.run([plugin])
    assert json.loads(done.stdout)["api_version"] == "1.0.0"
    assert done.stderr.startswith("CNI pynet plugin v")
    assert VERSIONS[-1] in done.stderr.splitlines()[1]


# What is wrong with a call

ENVIRONMENTS = [
    ({"CNI_COMMAND": "FOO"}, 4, "CNI_COMMAND"),
    ({"CNI_CONTAINERID": ""}, 4, "CNI_CONTAINERID"),
    ({"CNI_CONTAINERID": "/x"}, 4, "CNI_CONTAINERID"),
    ({"CNI_NETNS": ""}, 4, "CNI_NETNS"),
    ({"CNI_NETNS": "/run/netns/none"}, 4, "/run/netns/none"),
    ({"CNI_NETNS": "/proc/1/ns/net"}, 8, "own network namespace"),
    ({"CNI_IFNAME": ""}, 4, "CNI_IFNAME"),
    ({"CNI_IFNAME": "a" * 16}, 4, "CNI_IFNAME"),
    ({"CNI_IFNAME": "a/b"}, 4, "CNI_IFNAME"),
    ({"CNI_ARGS": "FOO=bar"}, 4, "FOO"),
]
CONFIGS = [
    ("[]", 6, "not a JSON object"),
    ("{", 6, "not JSON"),
    ('{"cniVersion": "9.9.9", "name": "x"}', 1, "9.9.9"),
    ('{"cniVersion": "1.0.0"}', 7, "missing network name"),
    ('{"cniVersion": "1.0.0", "name": "a/b"}', 7, "a/b"),
    ('{"cniVersion": "1.0.0", "name": "x", "colour": "red"}', 2, "colour='red'"),
    ('{"cniVersion": "1.0.0", "name": "x", "mtu": "big"}', 7, "mtu='big'"),
    ('{"cniVersion": "1.0.0", "name": "x", "vlan": 100}', 2, "vlan=100"),
    ('{"cniVersion": "1.0.0", "name": "x", "isGateway": "perhaps"}', 7, "isGateway"),
    ('{"cniVersion": "1.0.0", "name": "x", "hairpinMode": true, "promiscMode": true}', 7, "hairpin"),
    ('{"cniVersion": "1.0.0", "name": "x", "ipam": {"ranges": [[{"subnet": "10.1.0.1/24"}]]}}', 7, "10.1.0.1/24"),
    ('{"cniVersion": "1.0.0", "name": "x", "ipam": {"subnet": "10.1.0.0/31"}}', 7, "too small"),
    (
        '{"cniVersion": "1.0.0", "name": "x", "ipam": {"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}}',
        7,
        "10.2.0.1",
    ),
    ('{"cniVersion": "1.0.0", "name": "x", "ipam": {"type": "nobody"}}', 7, "nobody"),
    ('{"cniVersion": "1.0.0", "name": "x", "runtimeConfig": {"portMappings": [{"hostPort": 0}]}}', 7, "hostPort"),
    (
        '{"cniVersion": "1.0.0", "name": "x", "runtimeConfig": {"bandwidth": {"ingressRate": 8}}}',
        7,
        "from 8kbit to 1tbit",
    ),
    ('{"cniVersion": "1.0.0", "name": "x", "runtimeConfig": {"ips": ["10.1.0"]}}', 7, "10.1.0"),
]
NAMED = [env for env in ENVIRONMENTS if env[0].get("CNI_NETNS", "") != "/proc/1/ns/net"]


@pytest.mark.parametrize(("wrong", "code", "words"), ENVIRONMENTS, ids=lambda it: str(it)[:40])
def test_wrong_environment_is_refused_by_name(
    host: Host, plugin: str, wrong: dict[str, str], code: int, words: str
) -> None:
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0"} | wrong
    with pytest.raises(PluginError) as caught:
        execute(host, plugin, '{"cniVersion": "1.0.0", "name": "x"}', env)
    assert (caught.value.code, words in caught.value.text) == (code, True), caught.value


@pytest.mark.parametrize(("config", "code", "words"), CONFIGS, ids=lambda it: str(it)[:60])
def test_wrong_configuration_is_refused_by_name(host: Host, plugin: str, config: str, code: int, words: str) -> None:
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0"}
    with pytest.raises(PluginError) as caught:
        execute(host, plugin, config, env)
    assert (caught.value.code, words in caught.value.text) == (code, True), caught.value


# CHECK, GC, STATUS


def refused_check(it: Runtime, command: list[str]) -> PluginError | None:
    """Break something in a new container; return what CHECK says of it, unless the daemon has mended it by then."""
    with cni_attached(it) as (netns, one):
        it.check(one)
        netns.exec(*command)
        try:
            it.check(one)
        except PluginError as error:
            return error
    return None


def test_check_finds_what_is_missing(host: Host, netplug: Netplug) -> None:
    breakages = {
        "address": ["ip", "addr", "flush", "dev", "eth0"],
        "route": ["ip", "route", "del", "default"],
        "link": ["ip", "link", "del", "eth0"],
    }
    with cni_list(host, netplug, PYNET | own_ipam(RANGES4), version="0.4.0") as it:
        for what, command in breakages.items():
            error = wait_until(partial(refused_check, it, command), 40, f"a check before the daemon mends the {what}")
            assert (error.code, f"{what}/" in error.text) == (104, True), error
        with cni_attached(it) as (_, one):
            it.delete(one)
            with pytest.raises(PluginError) as caught:
                it.check(one)
            assert caught.value.code == 103


def test_check_wants_the_previous_result(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PYNET | own_ipam(RANGES4)) as it, cni_attached(it) as (_, one):
        it.check(one)
        one.result = {}
        with pytest.raises(PluginError, match="prevResult"):
            it.check(one)


def test_gc_frees_what_the_runtime_forgot(host: Host, netplug: Netplug) -> None:
    """Half of them; one whose namespace is gone; and with the last the network itself."""
    with cni_list(host, netplug, PYNET | own_ipam(RANGES46), version="1.1.0") as it, ExitStack() as stack:
        places = [stack.enter_context(namespace(host)) for _ in range(6)]
        ports = [{"runtime": {"portMappings": [{"hostPort": 9000 + n, "containerPort": 80}]}} for n in range(6)]
        made = [it.add(place, **port) for place, port in zip(places, ports, strict=True)]
        places[0].remove()
        it.gc(*made[3:])
        assert {end["container"] for end in netplug.json("ps", "--network", it.name)} == {x.container for x in made[3:]}
        assert all(links_of(place) == ["eth0", "lo"] for place in places[3:])
        wait_until(lambda: links_of(places[1]) == ["lo"], what="its link to go")
        it.gc()
        assert it.name not in [net["name"] for net in netplug.json("network", "ls")]
        it.gc()


def test_gc_without_a_list_is_refused(host: Host, plugin: str) -> None:
    env = {"CNI_COMMAND": "GC", "CNI_PATH": BIN_DIR}
    with pytest.raises(PluginError, match="valid-attachments"):
        execute(host, plugin, '{"cniVersion": "1.1.0", "name": "x", "type": "pynet"}', env)


def test_status_tells_of_a_full_range_and_a_damaged_network(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PYNET | own_ipam([[{"subnet": "10.91.0.0/30"}]]), version="1.1.0") as it:
        it.status()
        with cni_attached(it):
            with pytest.raises(PluginError, match="no IPv4 address is free") as caught:
                it.status()
            assert caught.value.code == 50
            assert cni_refusal(it).code == 11
        it.status()
        (bridge,) = [net for net in netplug.json("network", "ls") if net["name"] == it.name]
        name = f"np-{bridge['id'][:12]}"
        host.run(["ip", "link", "del", name])
        it.status()  # mends what it can first
        assert not netplug.drift()
        # What it cannot: a stranger has the name.
        assert netplug.process
        netplug.process.freeze()  # else it may be there first
        host.run(["sh", "-ec", f"ip link del {name}; ip link add {name} type bridge"])
        netplug.process.signal(signal.SIGCONT)
        with pytest.raises(PluginError) as caught:
            it.status()
        assert caught.value.code == 51
        host.run(["ip", "link", "del", name])
        it.status()


def test_status_tells_of_a_network_that_cannot_be_made(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PYNET | {"master": "nowhere0"} | own_ipam(RANGES4), version="1.1.0") as it:
        with pytest.raises(PluginError, match="nowhere0") as caught:
            it.status()
        assert caught.value.code == 50
