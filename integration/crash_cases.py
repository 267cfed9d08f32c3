"""What is done while the daemon dies: for each driver, the requests of each caller, and those that take them back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.crash_cluster import ClusterScene
from harness.crash_scene import UPLINK, Request, Scene

NET, END = "a1" * 32, "e1" * 32
GENERIC, PORTMAP = "com.docker.network.generic", "com.docker.network.portmap"
EXPOSED = "com.docker.network.endpoint.exposedports"
BINDINGS = [
    {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080},
    {"Proto": 17, "IP": "", "Port": 53, "HostIP": "127.0.0.1", "HostPort": 8053, "HostPortEnd": 8053},
]
REF = {"NetworkID": NET, "EndpointID": END}
NETNS = "/run/netns/web"
OPTIONS: dict[str, dict[str, str]] = {
    "bridge": {},
    "macvlan": {"mode": "macvlan", "parent": UPLINK, "host_access": "true"},
    "host": {"mode": "host"},
    "none": {"mode": "none"},
    "overlay": {"mode": "overlay", "vni": "4242"},
}
SUBNETS = {
    "bridge": ("10.80.0.0/24", "fd00:80::/64"),
    "macvlan": ("198.51.100.0/24", "fd00:80::/64"),
    "host": ("10.80.0.0/24", "fd00:80::/64"),
    "none": (),
    "overlay": ("10.80.0.0/24", "fd00:80::/64"),
}
LOCAL = ("bridge", "macvlan", "host", "none")
Requests = tuple[Request, ...]


@dataclass(frozen=True)
class Case:
    """`given` was done, then `do` dies at each point, and then `undo` does, which takes it back.

    `daemon`: whether one runs meanwhile. `cluster`: the host is one of a cluster.
    `ways`: during which of the two it dies.
    """

    driver: str
    what: str
    do: Requests
    undo: Requests
    given: Requests = ()
    daemon: bool = True
    cluster: bool = False
    ways: tuple[str, ...] = ("do", "undo")

    @property
    def name(self) -> str:
        return f"{self.driver}: {self.what}"


# Docker


def plugin(method: str, body: Any) -> Request:
    return lambda scene: scene.plugin(f"NetworkDriver.{method}", body)


def ipam(method: str, body: Any) -> Request:
    return lambda scene: scene.plugin(f"IpamDriver.{method}", body)


def docker_network(driver: str, space: str = "LocalDefault") -> Requests:
    def aux(subnet: str) -> dict[str, str]:
        return {"host": _at(subnet, 7)} if driver == "macvlan" else {}

    v4, v6 = (
        [{"AddressSpace": space, "AuxAddresses": aux(subnet), "Gateway": _at(subnet, 1), "Pool": subnet}]
        for subnet in SUBNETS[driver] or ("10.80.0.0/24", "fd00:80::/64")
    )
    options = {
        "com.docker.network.enable_ipv4": True,
        "com.docker.network.enable_ipv6": True,
        GENERIC: OPTIONS[driver],
    }
    return (plugin("CreateNetwork", {"NetworkID": NET, "Options": options, "IPv4Data": v4, "IPv6Data": v6}),)


def _at(subnet: str, number: int) -> str:
    base, _, bits = subnet.partition("/")
    return f"{base.removesuffix('0') if '.' in base else base}{number}/{bits}"


def docker_endpoint(driver: str) -> Requests:
    v4, v6 = (_at(subnet, 9) for subnet in SUBNETS[driver] or ("10.80.0.0/24", "fd00:80::/64"))
    interface = {"Address": v4, "AddressIPv6": v6, "MacAddress": ""}
    options = {EXPOSED: [], PORTMAP: BINDINGS}
    return (plugin("CreateEndpoint", REF | {"Interface": interface, "Options": options}),)


def join(scene: Scene) -> None:
    options = {EXPOSED: [], PORTMAP: BINDINGS}
    scene.kept["joined"] = scene.plugin("NetworkDriver.Join", REF | {"SandboxKey": NETNS, "Options": options})


def plug_in(scene: Scene) -> None:
    """Move the link, as dockerd does after Join."""
    name = scene.kept["joined"].get("InterfaceName")
    if name and name["SrcName"]:
        scene.host.run(["ip", "link", "set", name["SrcName"], "netns", "web", "name", "eth0"])
        scene.host.run(["ip", "-n", "web", "link", "set", "eth0", "up"])


def pull_out(scene: Scene) -> None:
    """Move the link back, as dockerd does after Leave; it may have gone with the endpoint."""
    name = scene.kept["joined"].get("InterfaceName")
    if name and name["SrcName"]:
        lines = f"ip -n web link set eth0 down; ip -n web link set eth0 netns {scene.host_pid} name {name['SrcName']}"
        scene.host.run(["sh", "-c", lines], check=False)


PUBLISH = plugin("ProgramExternalConnectivity", REF | {"Options": {EXPOSED: [], PORTMAP: BINDINGS}})
READY = plugin("EndpointOperInfo", REF)
UNPUBLISH = plugin("RevokeExternalConnectivity", REF)
LEAVE = plugin("Leave", REF)
DELETE_ENDPOINT = plugin("DeleteEndpoint", REF)
DELETE_NETWORK = plugin("DeleteNetwork", {"NetworkID": NET})
POOL = "10.80.0.0/24"
OWN_POOL = (
    ipam("RequestPool", {"AddressSpace": "netplug-local", "Pool": POOL, "SubPool": "", "Options": {}, "V6": False}),
    ipam(
        "RequestAddress",
        {
            "PoolID": f"local/{POOL}",
            "Address": "10.80.0.1",
            "Options": {"RequestAddressType": "com.docker.network.gateway"},
        },
    ),
)
OWN_POOL_BACK = (
    ipam("ReleaseAddress", {"PoolID": f"local/{POOL}", "Address": "10.80.0.1"}),
    ipam("ReleasePool", {"PoolID": f"local/{POOL}"}),
)


def own_network(scene: Scene) -> None:
    data = [{"AddressSpace": "netplug-local", "AuxAddresses": {}, "Gateway": "10.80.0.1/24", "Pool": POOL}]
    body = {"NetworkID": NET, "Options": {GENERIC: {}}, "IPv4Data": data}
    scene.plugin("NetworkDriver.CreateNetwork", body)


def own_address(scene: Scene) -> None:
    body = {"PoolID": f"local/{POOL}", "Address": "10.80.0.9", "Options": {}}
    scene.kept["address"] = scene.plugin("IpamDriver.RequestAddress", body)["Address"]


def own_endpoint(scene: Scene) -> None:
    interface = {"Address": scene.kept["address"], "AddressIPv6": "", "MacAddress": ""}
    body = REF | {"Interface": interface, "Options": {PORTMAP: BINDINGS}}
    scene.plugin("NetworkDriver.CreateEndpoint", body)


def own_address_back(scene: Scene) -> None:
    address = scene.kept["address"].partition("/")[0]
    scene.plugin("IpamDriver.ReleaseAddress", {"PoolID": f"local/{POOL}", "Address": address})


def docker_cases(driver: str) -> list[Case]:
    network, endpoint = docker_network(driver), docker_endpoint(driver)
    joined = (*network, *endpoint, join, plug_in)
    found = [
        Case(driver, "Docker CreateNetwork, DeleteNetwork", network, (DELETE_NETWORK,)),
        Case(driver, "Docker CreateEndpoint, DeleteEndpoint", endpoint, (DELETE_ENDPOINT,), network),
        Case(driver, "Docker Join, Leave", (join, plug_in, READY), (LEAVE, pull_out), (*network, *endpoint)),
    ]
    if driver == "bridge":  # others publish nothing
        found.append(Case(driver, "Docker ProgramExternalConnectivity, Revoke", (PUBLISH, READY), (UNPUBLISH,), joined))
    return found


def own_pool_cases() -> list[Case]:
    """Networks whose addresses Docker has of us.

    A request for a pool or an address whose answer is lost is not repeated by dockerd; `netplug.docker.garbage` frees
    what came of it.
    """
    run = (own_endpoint, join, plug_in, PUBLISH, READY)
    remove = (UNPUBLISH, LEAVE, pull_out, DELETE_ENDPOINT)
    made, undone = (*OWN_POOL, own_network), (DELETE_NETWORK, *OWN_POOL_BACK)
    return [
        Case("bridge", "Docker CreateNetwork in our pool", (own_network,), (DELETE_NETWORK,), OWN_POOL),
        Case("bridge", "Docker DeleteNetwork, ReleasePool", made, undone, ways=("undo",)),
        Case("bridge", "Docker container in our pool", run, remove, (*made, own_address)),
        Case("bridge", "Docker ReleaseAddress", (own_address,), (own_address_back,), made, ways=("undo",)),
    ]


# The command


def api(method: str, *path: str, already: str = "", **body: Any) -> Request:
    return lambda scene: scene.api(method, *path, already=already, **body)


def own(driver: str) -> Request:
    subnets = [{"subnet": subnet} for subnet in SUBNETS[driver]]
    return api("POST", "networks", name="blue", subnets=subnets, options=OPTIONS[driver])


OWN_BACK = api("DELETE", "networks", "blue", already="no network")
PORTS = [
    {"port": 80, "proto": "tcp", "host_port": 8080},
    {"port": 53, "proto": "udp", "host_port": 8053, "host_address": "127.0.0.1"},
]
DETACH = api("POST", "detach", already="is not attached", network="blue", netns="web", ifname="eth0")
MORE_PORTS = [{"port": 90, "proto": "tcp", "host_port": 9090}, {"port": 91, "proto": "udp", "host_port": 9091}]
CHANGED = {"rate": "8mbit", "icc": "false", "dns": "off", "mtu": "1300"}


def attach(driver: str) -> Request:
    ports = PORTS if driver in {"bridge", "host"} else []
    at = [_at(subnet, 9).partition("/")[0] for subnet in SUBNETS[driver]]
    return api("POST", "attach", network="blue", netns="web", name="web", ports=ports, addresses=at)


def command_cases(driver: str) -> list[Case]:
    network, plugged = own(driver), attach(driver)
    found = [
        Case(driver, "network create, rm", (network,), (OWN_BACK,)),
        Case(driver, "attach, detach", (plugged,), (DETACH,), (network,)),
    ]
    if driver != "none":
        change = {"bridge": CHANGED, "macvlan": {"mtu": "1300"}, "host": {"rate": "8mbit", "masquerade": "false"}}
        back = dict.fromkeys(change[driver], "")
        updates = (api("PATCH", "networks", "blue", options=it) for it in (change[driver], back))
        do, undo = updates
        found.append(Case(driver, "network update, back", (do,), (undo,), (network, plugged)))
    if driver == "bridge":
        more = (
            api("POST", "publish", endpoint="blue/web", ports=MORE_PORTS),
            api("POST", "unpublish", already="has not published", endpoint="blue/web", ports=MORE_PORTS),
        )
        subnet = (
            api("PATCH", "networks", "blue", already="overlaps", add_subnets=[{"subnet": "10.81.0.0/24"}]),
            api("PATCH", "networks", "blue", already="no subnet", remove_subnets=["10.81.0.0/24"]),
        )
        found += [
            Case(driver, "publish, unpublish", more[:1], more[1:], (network, plugged)),
            Case(driver, "network update --subnet-add, --subnet-rm", subnet[:1], subnet[1:], (network, plugged)),
        ]
    return found


# CNI and netavark

CONTAINER = "c0" * 32


def cni_config(driver: str) -> dict[str, Any]:
    own_ipam = {"type": "netplug-ipam", "ranges": [[{"subnet": subnet}] for subnet in SUBNETS[driver]]}
    config = {
        "cniVersion": "1.1.0",
        "name": "pods",
        "type": "pynet",
        "capabilities": {"portMappings": True, "ips": True},
    }
    return config | OPTIONS[driver] | ({"ipam": own_ipam} if driver != "none" else {})


def cni(driver: str, command: str, *, alone: bool = False, netns: str = NETNS, **more: Any) -> Request:
    words = {"CNI_COMMAND": command, "CNI_PATH": "/run/cni-bin"}
    if command != "GC":
        words |= {"CNI_CONTAINERID": CONTAINER, "CNI_IFNAME": "eth0", "CNI_NETNS": netns}
    config = cni_config(driver) | more
    if command == "ADD":
        config["runtimeConfig"] = {"ips": [_at(subnet, 9) for subnet in SUBNETS[driver]]}
    if command == "ADD" and driver in {"bridge", "host"}:
        ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
        config["runtimeConfig"]["portMappings"] = ports
    return lambda scene: (scene.alone if alone else scene.executable)(words, config)


def collect(driver: str, *, alone: bool = False) -> Request:
    return cni(driver, "GC", alone=alone, **{"cni.dev/valid-attachments": []})


def cni_cases(driver: str) -> list[Case]:
    add, delete = cni(driver, "ADD"), cni(driver, "DEL")
    return [
        Case(driver, "CNI ADD to a new network, GC", (add,), (collect(driver),)),
        Case(driver, "CNI ADD, DEL", (add,), (delete,), (add, delete)),
    ]


def alone_cases(driver: str) -> list[Case]:
    add, delete, gc = cni(driver, "ADD", alone=True), cni(driver, "DEL", alone=True), collect(driver, alone=True)
    return [
        Case(driver, "CNI without a daemon: ADD to a new network, GC", (add,), (gc,), daemon=False),
        Case(driver, "CNI without a daemon: ADD, DEL", (add,), (delete,), (add, delete), daemon=False),
    ]


PODMAN_ID = "1d" * 32


def podman_network(driver: str) -> dict[str, Any]:
    subnets = [{"subnet": subnet, "gateway": _at(subnet, 1).partition("/")[0]} for subnet in SUBNETS[driver]]
    return {
        "name": "pods",
        "id": PODMAN_ID,
        "driver": "pynet",
        "created": "0001-01-01T00:00:00Z",
        "dns_enabled": driver != "none",
        "internal": False,
        "ipv6_enabled": bool(subnets),
        "subnets": subnets or None,
        "options": OPTIONS[driver],
        "ipam_options": {"driver": "pynet"} if subnets else {"driver": "none"},
    }


def netavark(driver: str, command: str) -> Request:
    ports = [{"container_port": 80, "host_port": 8080, "host_ip": "", "protocol": "tcp", "range": 1}]
    at = [_at(subnet, 9).partition("/")[0] for subnet in SUBNETS[driver]]
    given = {
        "container_id": CONTAINER,
        "container_name": "web",
        "port_mappings": ports if driver in {"bridge", "host"} else None,
        "network": podman_network(driver),
        "network_options": {"interface_name": "eth0", "aliases": None, "static_ips": at or None, "static_mac": None},
    }
    words = {"NETAVARK_COMMAND": command, "NETAVARK_NETNS": NETNS if command != "create" else ""}
    return lambda scene: scene.executable(words, given["network"] if command == "create" else given)


PODS_BACK = api("DELETE", "networks", "pods", already="no network")


def netavark_cases(driver: str) -> list[Case]:
    create, setup, teardown = (netavark(driver, command) for command in ("create", "setup", "teardown"))
    return [
        Case(driver, "netavark create, network rm", (create,), (PODS_BACK,)),
        Case(driver, "netavark setup, teardown", (setup,), (teardown,), (create,)),
    ]


# Starts and healing

DAMAGE = """
nft flush ruleset; iptables -F; ip link del $(ls /sys/class/net | grep -m1 '^np[-m]') || true
echo 0 >/proc/sys/net/ipv4/ip_forward
"""


def broken_start(scene: Scene) -> None:
    """Have the daemon down while others break what it made; then it starts."""
    if scene.netplug.running:
        limit = scene.netplug.control.limit
        scene.netplug.control.disarm()
        scene.netplug.kill()
        scene.host.run(["sh", "-c", DAMAGE])
        scene.netplug.control.arm(limit)
    scene.start()


def heal(scene: Scene) -> None:
    """Have others break what the daemon made, and the daemon mend it."""
    scene.host.run(["sh", "-c", DAMAGE])
    scene.repair()


def start_cases(driver: str) -> list[Case]:
    given = (own(driver), attach(driver))
    return [
        Case(driver, "start over damage", (broken_start,), (), given),
        Case(driver, "repair", (heal,), (), given),
    ]


# Clusters

BLUE = {
    "name": "blue",
    "cluster": True,
    "options": {"vni": "4242"},
    "subnets": [{"subnet": "10.80.0.0/24"}, {"subnet": "fd00:80::/64"}],
}
FOLLOWED: Request = lambda scene: _clustered(scene).followed()  # noqa: E731


def _clustered(scene: Scene) -> ClusterScene:
    assert isinstance(scene, ClusterScene)
    return scene


def pod(command: str) -> Request:
    """A container of a network of the cluster."""
    words = {"CNI_COMMAND": command, "CNI_CONTAINERID": CONTAINER, "CNI_IFNAME": "eth0", "CNI_NETNS": NETNS}
    config = {"cniVersion": "1.1.0", "name": "blue", "type": "pynet", "capabilities": {"ips": True}}
    if command == "ADD":
        config["runtimeConfig"] = {"ips": ["10.80.0.9/24", "fd00:80::9/64"]}
    return lambda scene: scene.executable(words | {"CNI_PATH": "/run/cni-bin"}, config)


OWN_END = (
    plugin(
        "CreateEndpoint",
        REF | {"Interface": {"Address": "10.80.0.9/24", "AddressIPv6": "fd00:80::9/64"}, "Options": {}},
    ),
)


def docker_in_cluster() -> tuple[Requests, Requests, Requests]:
    """What Docker asks for before it creates a network of the cluster, the creation, and the deletion."""
    gateway = {"RequestAddressType": "com.docker.network.gateway"}
    pools: list[Request] = []
    data: list[list[dict[str, str]]] = []
    for subnet in SUBNETS["bridge"]:
        space, v6 = {"AddressSpace": "netplug-local", "Pool": subnet}, ":" in subnet
        pools += [
            ipam("RequestPool", space | {"SubPool": "", "V6": v6, "Options": {"name": "blue"}}),
            ipam("RequestAddress", {"PoolID": f"global/{subnet}", "Address": "", "Options": gateway}),
        ]
        data.append([space | {"Gateway": _at(subnet, 1)}])
    options = {GENERIC: OPTIONS["overlay"] | {"name": "blue"}}
    body = {"NetworkID": NET, "Options": options, "IPv4Data": data[0], "IPv6Data": data[1]}
    return tuple(pools), (plugin("CreateNetwork", body),), (DELETE_NETWORK,)


def cluster_cases() -> list[Case]:
    network = (api("POST", "networks", already="exists", **BLUE), FOLLOWED)
    back = (api("DELETE", "networks", "blue", already="no network"), FOLLOWED)
    changes = {"bum": "true", "mtu": "1300", "rate": "10mbit"}
    update, restore = (api("PATCH", "networks", "blue", options=it) for it in (changes, dict.fromkeys(changes, "")))
    more = (
        api("PATCH", "networks", "blue", already="overlaps", add_subnets=[{"subnet": "10.81.0.0/24"}]),
        api("PATCH", "networks", "blue", already="no subnet", remove_subnets=["10.81.0.0/24"]),
    )
    ports = (
        api("POST", "publish", endpoint="blue/web", ports=MORE_PORTS),
        api("POST", "unpublish", already="has not published", endpoint="blue/web", ports=MORE_PORTS),
    )
    plugged = (*network, attach("bridge"))
    pools, dockers, removed = docker_in_cluster()
    leave: Request = lambda scene: _clustered(scene).leave()  # noqa: E731
    dies: Request = lambda scene: _clustered(scene).third_dies()  # noqa: E731
    forget: Request = lambda scene: _clustered(scene).forget_third()  # noqa: E731
    (create, setup), (pods_back, teardown) = zip(*((it.do, it.undo) for it in netavark_cases("overlay")), strict=True)
    found = [
        ("network create --cluster, rm", network, back, ()),
        ("attach, detach", (attach("bridge"),), (DETACH,), network),
        ("network update, back", (update,), (restore,), plugged),
        ("network update --subnet-add, --subnet-rm", more[:1], more[1:], plugged),
        ("publish, unpublish", ports[:1], ports[1:], plugged),
        ("CNI ADD, DEL", (pod("ADD"),), (pod("DEL"),), network),
        ("CNI ADD to a new network, GC", (cni("overlay", "ADD"), FOLLOWED), (collect("overlay"), FOLLOWED), ()),
        ("netavark create, network rm", (*create, FOLLOWED), (*pods_back, FOLLOWED), ()),
        ("netavark setup, teardown", setup, teardown, (*create, FOLLOWED)),
        ("Docker CreateNetwork, DeleteNetwork", dockers, removed, (*network, *pools)),
        ("Docker CreateNetwork of a new network", (*dockers, FOLLOWED), (*removed, FOLLOWED), pools),
        ("Docker CreateEndpoint, DeleteEndpoint", OWN_END, (DELETE_ENDPOINT,), (*network, *pools, *dockers)),
        ("Docker Join, Leave", (join, plug_in, READY), (LEAVE, pull_out), (*network, *pools, *dockers, *OWN_END)),
        ("repair", (heal,), (), plugged),
        ("start over damage", (broken_start,), (), plugged),
    ]
    forgetting = Case("overlay", "host forget", (forget,), (dies,), (*network, dies), cluster=True, ways=("do",))
    joining = Case(
        "overlay", "a host joins", (Scene.start,), (leave,), (leave,), daemon=False, cluster=True, ways=("do",)
    )
    return [*(Case("overlay", *it, cluster=True) for it in found), forgetting, joining]


def cases() -> list[Case]:
    """Return all cases."""
    found: list[Case] = []
    for driver in LOCAL:
        makers: tuple[Callable[[str], list[Case]], ...] = (docker_cases, command_cases, cni_cases, netavark_cases)
        found += [case for make in makers for case in make(driver)]
        found += start_cases(driver) if driver != "none" else []
    found += cluster_cases() + own_pool_cases() + [case for driver in LOCAL for case in alone_cases(driver)]
    return found
