"""Each flag of Docker's that has to do with networks, in each mode, by its effect: the table in docs/docker.md.

A check makes a network of the mode, uses the flag, and says whether it had its effect.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from flags_table import IGNORED, MODES, REFUSED, TABLE, WORKS, Row, in_document, markdown
from harness import (
    CommandError,
    Container,
    Dockerd,
    Host,
    Netplug,
    SeenServer,
    Wire,
    container,
    docker_network,
    tcp_ask,
    wait_until,
)

RESTART_TIMEOUT_S = 30
HERE = [row for row in TABLE if not row.since]
"""What 20.10 has. The others are in tests/test_docker_flags.py."""
SUBNET6 = ("--ipv6", "--subnet", "fd00:94::/64", "--gateway", "fd00:94::1")

pytestmark = pytest.mark.usefixtures("netplug")


class Case:
    """A mode on a host, and what checks need there."""

    def __init__(self, mode: str, dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
        self.mode = mode
        self.dockerd = dockerd
        self.netplug = netplug
        self.client = client
        self.wire = wire

    @contextmanager
    def network(self, *flags: str) -> Iterator[str]:
        subnet = () if "--subnet" in flags or "null" in flags else ("--subnet", "10.94.0.0/24")
        with docker_network(self.dockerd, "-o", f"mode={self.mode}", *subnet, *flags) as net:
            yield net

    @contextmanager
    def container(self, *flags: str, create: tuple[str, ...] = ()) -> Iterator[Container]:
        with self.network(*create) as net, container(self.dockerd, "--network", net, *flags) as it:
            yield it

    def addresses(self, it: Container) -> str:
        return it.exec("ip", "-o", "address")

    def connected(self, *flags: str, create: tuple[str, ...] = ()) -> str:
        """Return the addresses of a container that was connected with these flags."""
        with self.network(*create) as net, container(self.dockerd, "--network", "none") as it:
            self.dockerd.docker("network", "disconnect", "none", it.id)
            self.dockerd.docker("network", "connect", *flags, net, it.id)
            return self.addresses(it)


def subnet(case: Case) -> bool:
    flags = ("--subnet", "10.94.7.0/24", "--gateway", "10.94.7.9")
    with case.container(create=flags) as it:
        return "10.94.7.9" in it.exec("ip", "route") and "inet 10.94.7." in case.addresses(it)


def ip_range(case: Case) -> bool:
    with case.container(create=("--ip-range", "10.94.0.64/29")) as it:
        return any(f"inet 10.94.0.{64 + last}/" in case.addresses(it) for last in range(8))


def aux_address(case: Case) -> bool:
    flags = ("--ip-range", "10.94.0.64/30", "--gateway", "10.94.0.1")
    aux = ("--aux-address", "a=10.94.0.64", "--aux-address", "b=10.94.0.65", "--aux-address", "c=10.94.0.66")
    with case.container(create=(*flags, *aux)) as it:
        return "inet 10.94.0.67/" in case.addresses(it)


def ipv6(case: Case) -> bool:
    with case.container(create=SUBNET6) as it:
        return "inet6 fd00:94::" in case.addresses(it)


def internal(case: Case) -> bool:
    with case.container(create=("--internal",)) as it:
        return not it.pings(case.wire.right) and "default" not in it.exec("ip", "route")


def ipam_pynet(case: Case) -> bool:
    with case.network("--ipam-driver", "pynet") as net, container(case.dockerd, "--network", net) as it:
        leased = {lease["address"] for pool in case.netplug.json("ipam", "ls") for lease in pool["leases"]}
        return it.ip() in leased and f"inet {it.ip()}/" in case.addresses(it)


def ipam_null(case: Case) -> bool:
    with case.container(create=("--ipam-driver", "null")) as it:
        return not it.ip() and "inet 10." not in case.addresses(it)


def label(case: Case) -> bool:
    with case.network("--label", "team=blue") as net:
        return bool(case.dockerd.inspect(net)["Labels"] == {"team": "blue"})


def attachable(case: Case) -> bool:
    with case.network("--attachable") as net:
        return bool(case.dockerd.inspect(net)["Attachable"])


def config_from(case: Case) -> bool:
    case.dockerd.docker("network", "create", "--config-only", "--subnet", "10.94.8.0/24", "template")
    try:
        name = "from-template"
        case.dockerd.docker(
            "network", "create", "-d", "pynet", "--config-from", "template", *_mode_by_label(case), name
        )
        with container(case.dockerd, "--network", name) as it:
            seen = it.ip().startswith("10.94.8.")
        case.dockerd.docker("network", "rm", name)
        return seen
    finally:
        case.dockerd.docker("network", "rm", "template")


def _mode_by_label(case: Case) -> tuple[str, ...]:
    """Docker takes no -o beside --config-from: the template has them."""
    case.dockerd.docker("network", "rm", "template")
    options = ("-o", f"mode={case.mode}", "--subnet", "10.94.8.0/24")
    case.dockerd.docker("network", "create", "--config-only", *options, "template")
    return ()


def only_create(*flags: str) -> Callable[[Case], bool]:
    def check(case: Case) -> bool:
        with case.network(*flags):
            return True

    return check


def connect_ip(case: Case) -> bool:
    return "inet 10.94.0.77/" in case.connected("--ip", "10.94.0.77")


def connect_alias(case: Case) -> bool:
    with case.network() as net, container(case.dockerd, "--network", "none") as it:
        case.dockerd.docker("network", "disconnect", "none", it.id)
        case.dockerd.docker("network", "connect", "--alias", "desk", net, it.id)
        return bool(it.ip()) and it.ip() in _resolved(it, "desk") and it.ip() in case.addresses(it)


def connect_driver_opt(case: Case) -> bool:
    return bool(case.connected("--driver-opt", "unknown=1"))


def connect_ip6(case: Case) -> bool:
    return "inet6 fd00:94::77/" in case.connected("--ip6", "fd00:94::77", create=SUBNET6)


def connect_link_local_ip(case: Case) -> bool:
    return "inet 169.254.7.7/16" in case.connected("--link-local-ip", "169.254.7.7")


def _linked(case: Case, connect: Callable[[str, str], Container]) -> bool:
    """See the other container by the name that a link gives it, where there can be another."""
    with case.network() as net, container(case.dockerd, "--network", net, "--name", "other") as other:
        try:
            it = connect(net, "other:desk")
        except CommandError:
            # The network has room for one.
            _remove_others(case, other)
            return False
        seen = other.ip() in _resolved(it, "desk") and it.pings("desk")
        it.remove()
        return seen


def _remove_others(case: Case, kept: Container) -> None:
    for ident in case.dockerd.docker("ps", "-aq", "--no-trunc").split():
        if ident != kept.id:
            case.dockerd.docker("rm", "-f", ident)


def connect_link(case: Case) -> bool:
    def connect(net: str, link: str) -> Container:
        it = case.dockerd.run("--network", "none")
        case.dockerd.docker("network", "disconnect", "none", it.id)
        case.dockerd.docker("network", "connect", "--link", link, net, it.id)
        return it

    return _linked(case, connect)


def run_link(case: Case) -> bool:
    return _linked(case, lambda net, link: case.dockerd.run("--network", net, "--link", link))


def disconnect_force(case: Case) -> bool:
    with case.network() as net, container(case.dockerd, "--network", net) as it:
        case.dockerd.docker("network", "disconnect", "-f", net, it.id)
        return "eth0" not in it.exec("ls", "/sys/class/net") and not case.netplug.json("ps")


def run_ip(case: Case) -> bool:
    with case.container("--ip", "10.94.0.77") as it:
        return "inet 10.94.0.77/" in case.addresses(it)


def run_ip6(case: Case) -> bool:
    with case.container("--ip6", "fd00:94::77", create=SUBNET6) as it:
        return "inet6 fd00:94::77/" in case.addresses(it)


def mac_address(case: Case) -> bool:
    with case.container("--mac-address", "02:00:5e:10:00:07") as it:
        return "02:00:5e:10:00:07" in it.exec("ip", "link")


def link_local_ip(case: Case) -> bool:
    with case.container("--link-local-ip", "169.254.7.7") as it:
        return "inet 169.254.7.7/16" in case.addresses(it)


def hostname(case: Case) -> bool:
    with case.container("--hostname", "desk", "--domainname", "example.net") as it:
        return it.exec("hostname", "-f") == "desk.example.net" and "desk.example.net" in it.exec("cat", "/etc/hosts")


def _resolved(it: Container, name: str) -> str:
    try:
        return it.exec("nslookup", name)
    except CommandError as exc:
        return exc.stderr


def network_alias(case: Case) -> bool:
    """A neighbour asks for it, where there can be one."""
    with case.network() as net, container(case.dockerd, "--network", net, "--network-alias", "desk") as it:
        try:
            with container(case.dockerd, "--network", net) as neighbour:
                return it.ip() in _resolved(neighbour, "desk") and neighbour.pings(it.ip())
        except CommandError:
            # The network has room for one.
            case.dockerd.docker("container", "prune", "-f")
            return False


def dns(case: Case) -> bool:
    with case.container("--dns", "192.0.2.53", "--dns-search", "example.net", "--dns-option", "ndots:3") as it:
        settings, seen = it.inspect()["HostConfig"], it.exec("cat", "/etc/resolv.conf").splitlines()
        return settings["Dns"] == ["192.0.2.53"] and {"search example.net", "options ndots:3"} <= {*seen}


def add_host(case: Case) -> bool:
    with case.container("--add-host", "desk:192.0.2.9") as it:
        return "192.0.2.9\tdesk" in it.exec("cat", "/etc/hosts")


def _asked(case: Case, port: int, server: SeenServer) -> bool:
    with server:
        try:
            tcp_ask(case.client, case.wire.left, port)
        except OSError:
            return False
        return bool(server.seen)


def publish(case: Case) -> bool:
    with case.container("-p", "8080:80") as it:
        return _asked(case, 8080, SeenServer(it, "tcp", 80))


def publish_all(case: Case) -> bool:
    with case.container("-P", "--expose", "80") as it:
        ports = [port for endpoint in case.netplug.json("ps") for port in endpoint["ports"]]
        return bool(ports) and _asked(case, _host_port(ports[0]), SeenServer(it, "tcp", 80))


def _host_port(shown: str) -> int:
    return int(shown.partition("->")[0].rpartition(":")[2])


def sysctl(case: Case) -> bool:
    with case.container("--sysctl", "net.ipv4.ip_default_ttl=9") as it:
        return it.exec("cat", "/proc/sys/net/ipv4/ip_default_ttl") == "9"


def container_network(case: Case) -> bool:
    with case.container() as it, container(case.dockerd, "--network", f"container:{it.id}") as guest:
        return guest.exec("ip", "-o", "link") == it.exec("ip", "-o", "link")


def restart(case: Case) -> bool:
    with case.container("--restart", "always") as it:
        before = it.inspect()["State"]["Pid"]
        case.dockerd.host.output("kill", "-9", str(before))
        wait_until(lambda: it.inspect()["State"]["Pid"] not in {0, before}, RESTART_TIMEOUT_S, "the restart")
        links = [link["ifname"] for link in json.loads(it.dockerd.host.output(*_inside(it), "ip", "-j", "link"))]
        return links == ["lo", *["eth0"] * (case.mode != "none")]


def _inside(it: Container) -> tuple[str, ...]:
    return ("nsenter", "-t", str(it.inspect()["State"]["Pid"]), "-n")


CHECKS: dict[str, Callable[[Case], bool]] = {
    "network create --subnet --gateway": subnet,
    "network create --ip-range": ip_range,
    "network create --aux-address": aux_address,
    "network create --ipv6": ipv6,
    "network create --internal": internal,
    "network create --ipam-driver pynet": ipam_pynet,
    "network create --ipam-driver null": ipam_null,
    "network create --ipam-opt unknown=1": only_create("--ipam-driver", "pynet", "--ipam-opt", "unknown=1"),
    "network create --label": label,
    "network create --attachable": attachable,
    "network create --config-from": config_from,
    "network create --scope swarm": only_create("--scope", "swarm"),
    "network create --scope global": only_create("--scope", "global"),
    "network create --ingress": only_create("--ingress"),
    "network create -o unknown=1": only_create("-o", "unknown=1"),
    "network connect --ip": connect_ip,
    "network connect --ip6": connect_ip6,
    "network connect --link-local-ip": connect_link_local_ip,
    "network connect --alias": connect_alias,
    "network connect --link": connect_link,
    "network connect --driver-opt unknown=1": connect_driver_opt,
    "network disconnect -f": disconnect_force,
    "run --ip": run_ip,
    "run --ip6": run_ip6,
    "run --mac-address": mac_address,
    "run --link-local-ip": link_local_ip,
    "run --hostname --domainname": hostname,
    "run --network-alias": network_alias,
    "run --link": run_link,
    "run --dns --dns-search --dns-option": dns,
    "run --add-host": add_host,
    "run -p": publish,
    "run -P": publish_all,
    "run --sysctl net.ipv4.ip_default_ttl=9": sysctl,
    "run --network container:NAME": container_network,
    "run --restart always": restart,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", HERE, ids=lambda row: row.name)
def test_flag_does_what_the_table_says(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire, row: Row, mode: str
) -> None:
    case, cell = Case(mode, dockerd, netplug, client, wire), row.cell(mode)
    if cell.startswith(REFUSED):
        with pytest.raises(CommandError) as caught:
            CHECKS[row.name](case)
        assert cell.removeprefix(REFUSED) in caught.value.stderr
        _tidy(dockerd)
        return
    assert CHECKS[row.name](case) is {WORKS: True, IGNORED: False}[cell]


def _tidy(dockerd: Dockerd) -> None:
    """Remove what a refused command left of its surroundings."""
    for ident in dockerd.docker("ps", "-aq").split():
        dockerd.docker("rm", "-f", ident)
    dockerd.docker("network", "prune", "-f")


def test_document_has_this_table() -> None:
    assert in_document() == markdown(), "python integration/flags_table.py --write"


def test_every_row_has_its_check() -> None:
    assert [row.name for row in HERE] == list(CHECKS)
