"""A member of the cluster that was taken over writes what it likes into the store. What the others take from it."""

import base64
from ipaddress import ip_network
from typing import Any

import pytest
from clustered import Hosts, address_of, apart, attach, claim, create, has, kernel_of, networks, reached, reaches
from etcd_server import Member, needs_etcd
from living import Living, until

from netplug.cluster import cluster
from netplug.cluster.foreign_networks import Allowed

pytestmark = needs_etcd

BAD = "192.0.2.66"


def definition(name: str, subnet: str, gateway: str = "", **options: str) -> dict[str, Any]:
    given = {"mode": "overlay", "vni": str(30_000 + ord(name[0]) + len(name)), "mtu": "1400", "name": name, **options}
    ranges = [{"subnet": subnet, "gateway": gateway or subnet.partition("/")[0][:-1] + "1", "range": None}]
    return {"name": name, "options": {key: text for key, text in given.items() if text}, "subnets": ranges}


LIES = {
    "a bridge of the host": (definition("b", "10.1.1.0/24", mode="bridge", vni=""), "mode 'bridge'"),
    "the host's ports": (definition("bb", "10.1.2.0/24", mode="host", vni=""), "mode 'host'"),
    "the LAN": (definition("bbb", "10.1.3.0/24", mode="macvlan", parent="eth0", vni=""), "mode 'macvlan'"),
    "the underlay": (definition("c", "192.0.2.0/24"), "the host's own address 192.0.2.1"),
    "all": (definition("d", "0.0.0.0/0"), "subnet 0.0.0.0/0, which is not private"),
    "half of all": (definition("e", "0.0.0.0/1"), "subnet 0.0.0.0/1, which is not private"),
    "a resolver of the world": (definition("f", "8.8.8.0/24", "8.8.8.8"), "subnet 8.8.8.0/24, which is not private"),
    "one of IPv6": (definition("g", "2606:4700::/32", "2606:4700::1"), "which is not private"),
    "metadata of a cloud": (definition("h", "169.254.0.0/16"), "subnet 169.254.0.0/16, which is not private"),
    "loopback": (definition("i", "127.0.0.0/8"), "which is not private"),
    "multicast": (definition("j", "224.0.0.0/8"), "which is not private"),
    "a gateway elsewhere": (definition("k", "10.1.4.0/24", "8.8.8.8"), "8.8.8.8 is not in subnet"),
    "a bridge of the user": (definition("l", "10.1.5.0/24", bridge="br-lan"), "bridge 'br-lan' of this host"),
    "the uplink": (definition("m", "10.1.6.0/24", bridge="eth0"), "bridge 'eth0' of this host"),
    "the port of DNS": (definition("n", "10.1.7.0/24", vxlan_port="53"), "UDP port 53"),
    "a command": (definition("x; rm -rf $(id)\n", "10.1.8.0/24"), "must be 1 to 128 letters"),
    "a path": (definition("../../etc", "10.1.9.0/24"), "must be 1 to 128 letters"),
}


def absent(host: Living) -> dict[str, str]:
    return host.do_and_get(lambda daemon: dict(daemon.cluster.mirroring._engine.registry.absent))  # type: ignore[union-attr]


@pytest.fixture
def one(hosts: Hosts) -> Living:
    return hosts.start(1)


def test_networks_that_reach_beyond_the_cluster_are_not_built(hosts: Hosts, etcd: Member, one: Living) -> None:
    one.kernel.foreign.links["br-lan"] = "bridge"
    create(one)
    before = dict(one.kernel._world.state)
    for number, (lie, _) in enumerate(LIES.values()):
        etcd.write(f"cluster/networks/{number:03}", lie)
    until(lambda: len(absent(one)) == len(LIES), "all are refused")
    said = absent(one)
    assert {what: said[lie["name"]] for what, (lie, words) in LIES.items() if words not in said[lie["name"]]} == {}
    assert networks(one) == ["blue"]
    assert one.kernel._world.state == before
    etcd.write("cluster/networks/zzz", definition("honest", "10.1.99.0/24"))
    has(one, "honest")


def test_what_this_host_allows_is_built(hosts: Hosts, etcd: Member) -> None:
    hosts.kernels[1] = kernel = kernel_of(1)
    kernel.foreign.links["br-lan"] = "bridge"
    one = hosts.start(1, cluster_allow=["8.8.0.0/16", "br-lan"])
    for number, what in enumerate(("a resolver of the world", "a bridge of the user", "one of IPv6")):
        etcd.write(f"cluster/networks/{number}", LIES[what][0])
    has(one, "f")
    has(one, "l")
    until(lambda: list(absent(one)) == ["g"], "what is not allowed is refused")


def test_an_update_gives_a_network_no_subnet_of_the_world(hosts: Hosts, etcd: Member, one: Living) -> None:
    ident = create(one, subnets=apart())["id"]
    key = f"cluster/networks/{ident}"
    stored = etcd.records("cluster/networks/")[key]
    more = {"subnet": "8.8.8.0/24", "gateway": "8.8.8.8", "range": None}
    etcd.write(key, {**stored, "subnets": [*stored["subnets"], more], "version": 1})
    until(lambda: "8.8.8.0/24, which is not private" in str(one.client.get("diff")), "it is said")
    (net,) = one.client.get("networks")["networks"]
    assert [it["subnet"] for it in net["subnets"]] == ["10.224.0.0/24"]


def test_what_is_defined_here_is_this_hosts_word(one: Living) -> None:
    assert create(one, "world", subnets=[{"subnet": "8.8.8.0/24"}])["name"] == "world"


def test_allowed_ranges_are_of_one_version() -> None:
    assert not Allowed().has(ip_network("::/0"))
    assert not Allowed.parse(["0.0.0.0/0"]).has(ip_network("::/0"))
    assert Allowed.parse(["0.0.0.0/0"]).has(ip_network("8.8.8.0/24"))
    assert Allowed().has(ip_network("fd00:1::/64"))


@pytest.fixture
def pair(hosts: Hosts, etcd: Member, one: Living) -> tuple[Living, str]:
    """Another host, and the key below which a bad third one tells of endpoints in network blue of both."""
    two = hosts.start(2)
    network = create(one, subnets=apart())["id"]
    has(two)
    etcd.write("cluster/hosts/bad", {"name": "bad", "vtep": BAD, "epoch": 1})
    return two, f"cluster/endpoints/{network}/bad/"


def refused(host: Living) -> str:
    return " ".join(it["what"] for it in host.client.get("diff")["differences"])


@pytest.mark.parametrize("vtep", ["192.0.2.1", "192.0.2.2", "127.0.0.1", "224.0.0.1", "0.0.0.0", "255.255.255.255"])
def test_tunnels_end_at_no_other_hosts_address(etcd: Member, one: Living, pair: tuple[Living, str], vtep: str) -> None:
    _, key = pair
    etcd.write("cluster/hosts/bad", {"name": "bad", "vtep": vtep, "epoch": 1})
    claim(etcd, f"{key}e1", "10.224.0.99")
    etcd.write(f"{key}e1", {"mac": "02:00:00:00:00:01", "addresses": ["10.224.0.99"], "names": []})
    until(lambda: f"VTEP {vtep}" in refused(one), "it is refused")
    assert not any("10.224.0.99" in it for it in reached(one))


def test_a_host_keeps_its_vtep_whatever_time_another_says(etcd: Member, one: Living, pair: tuple[Living, str]) -> None:
    two, key = pair
    there = address_of(attach(two))
    reaches(one, f"{there} at 192.0.2.2")
    claim(etcd, f"{key}e1", "10.224.0.99")
    etcd.write(f"{key}e1", {"mac": "02:00:00:00:00:01", "addresses": ["10.224.0.99"], "names": []})
    reaches(one, f"{there} at 192.0.2.2", f"10.224.0.99 at {BAD}")
    etcd.write("cluster/alive/bad", {"epoch": 1})
    etcd.write("cluster/hosts/bad", {"name": "bad", "vtep": "192.0.2.2", "epoch": 1, "since": 0})
    until(lambda: "VTEP 192.0.2.2" in refused(one), "it is said")
    reaches(one, f"{there} at 192.0.2.2")
    for host in (one, two):
        notes = {it["name"]: it["notes"] for it in host.client.get("hosts")["hosts"]}
        assert "belongs to host host-2" in str(notes["bad"])
        assert "VTEP" not in str(notes["host-2"])


@pytest.mark.parametrize("root", ["cluster/endpoints/x/y/z", "cluster/networks/x", "ipam/leases/x/10.0.0.1"])
def test_what_is_no_record_at_all_is_shown_until_it_is_gone(
    hosts: Hosts, etcd: Member, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.setattr(cluster, "INTERVAL_S", 0.1)
    if later := root.startswith("cluster/networks"):
        one = hosts.start(1)
    key = base64.b64encode(f"/netplug/v1/default/{root}".encode()).decode()
    etcd.post("kv/put", key=key, value=base64.b64encode(b"not json").decode())
    if not later:
        one = hosts.start(1)
    until(lambda: "is not a record of netplug; delete it with etcdctl" in refused(one), "it is shown")
    found = [it for it in one.client.get("diff")["differences"] if it["owner"] == "store"]
    assert [it["object"] for it in found] == [root]
    etcd.delete(root)
    until(lambda: "is not a record" not in refused(one), "it is gone")


@pytest.mark.parametrize(
    ("mac", "address"),
    [
        ("02:00:00:00:00:01", "8.8.8.8"),
        ("02:00:00:00:00:01", "192.0.2.2"),
        ("02:00:00:00:00:01", "127.0.0.1"),
        ("02:00:00:00:00:01", "224.0.0.1"),
        ("02:00:00:00:00:01", "10.224.0.1"),
        ("02:00:00:00:00:01", "10.224.0.0"),
        ("02:00:00:00:00:01", "10.224.0.255"),
        ("ff:ff:ff:ff:ff:ff", "10.224.0.99"),
        ("01:00:5e:00:00:01", "10.224.0.99"),
        ("00:00:00:00:00:00", "10.224.0.99"),
        ("x; rm", "10.224.0.99"),
    ],
)
def test_endpoints_have_addresses_of_their_network_and_macs_of_one(
    etcd: Member, one: Living, pair: tuple[Living, str], mac: str, address: str
) -> None:
    """Whatever leases it forges as well."""
    two, key = pair
    there = attach(two)
    claim(etcd, f"{key}e1", address)
    etcd.write(f"{key}e1", {"mac": mac, "addresses": [address], "names": []})
    until(lambda: "is not valid for an endpoint" in refused(one), "it is refused")
    reaches(one, f"{address_of(there)} at 192.0.2.2")


def test_what_a_bad_member_can_do(etcd: Member, one: Living, pair: tuple[Living, str]) -> None:
    """As docs/security.md says: in a network of its own it has a free address, and any name beside that of others."""
    two, key = pair
    web = address_of(attach(two, name="web"))
    claim(etcd, f"{key}e1", "10.224.0.99")
    names = ["web", "www.example.com", "localhost", "host.netplug.internal", "web.red.netplug.internal"]
    etcd.write(f"{key}e1", {"mac": "02:00:00:00:00:01", "addresses": ["10.224.0.99"], "names": names})
    reaches(one, f"{web} at 192.0.2.2", f"10.224.0.99 at {BAD}")

    def answers(name: str) -> set[str]:
        found = one.client.post("dns", "query", body={"name": name, "type": "A", "networks": ["blue"]})
        return {it["data"] for it in found["answers"]}

    until(lambda: answers("web") == {web, "10.224.0.99"}, "beside the other's")
    assert answers("www.example.com") == {"10.224.0.99"}
    assert answers("localhost") == {"127.0.0.1"}
    assert answers("host.netplug.internal") == {"10.224.0.1"}
    assert answers("web.red.netplug.internal") == set()
    create(one, "red", subnets=apart(1))
    body = {"name": "www.example.com", "type": "A", "networks": ["red"]}
    assert one.client.post("dns", "query", body=body)["answers"] == [], "not in a network that it has no endpoint in"


def test_a_host_takes_back_its_own_record(etcd: Member, one: Living, pair: tuple[Living, str]) -> None:
    two, _ = pair
    there = attach(two)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    ids = {it["name"]: it["id"] for it in one.client.get("hosts")["hosts"]}
    key = f"cluster/hosts/{ids['host-2']}"
    own = etcd.records("cluster/hosts/")[key]
    etcd.write(key, {**own, "vtep": "192.0.2.77", "name": "mallory"})

    def as_before() -> bool:
        return {**etcd.records("cluster/hosts/")[key]} == own

    until(as_before, "it is as it was")
    reaches(one, f"{address_of(there)} at 192.0.2.2")
