"""Addresses over several hosts, by one real etcd: who has which, on which host, and what is wrong with that."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clustered import Hosts, address_of, attach, create, detach, has
from etcd_server import Member, needs_etcd, running
from living import Living

from netplug.cli import CliError

pytestmark = needs_etcd


def pool_of(host: Living, network: str = "blue") -> dict[str, Any]:
    (pool,) = (it for it in host.client.get("ipam")["pools"] if network in it["networks"])
    return dict(pool)


def findings(host: Living) -> list[str]:
    return [f"{it['address']} {it['what']}" for it in host.client.get("ipam/audit")["findings"]]


def test_every_host_lists_the_addresses_of_all(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    here, there = attach(one, name="web"), attach(two, name="db")
    for host in (one, two):
        pool = pool_of(host)
        assert (pool["space"], pool["used"], pool["size"]) == ("global", 3, 254)
        held = {it["address"]: (it["owner_kind"], it["owner_name"], it["host"]) for it in pool["leases"]}
        assert held == {
            pool["subnet"].replace("0/24", "1"): ("gateway", "blue", ""),
            address_of(here): ("endpoint", "web", "host-1"),
            address_of(there): ("endpoint", "db", "host-2"),
        }
        assert findings(host) == []
    detach(one)
    assert address_of(here) not in {it["address"] for it in pool_of(two)["leases"]}


def test_without_the_store_a_host_lists_its_own(hosts: Hosts, tmp_path: Path) -> None:
    with running(tmp_path) as (etcd,):
        hosts.store = f"etcd://{etcd.host}"
        one = hosts.start(1)
        create(one)
        here = attach(one)
        etcd.stop()
        assert address_of(here) in {it["address"] for it in pool_of(one)["leases"]}
        etcd.start()


def test_four_hosts_share_a_small_subnet_to_the_last_address(hosts: Hosts) -> None:
    """Hard cases 6 and 19: none twice, and the last one who asks is told why there is none."""
    living = [hosts.start(number) for number in range(1, 5)]
    create(living[0], subnets=[{"subnet": "10.9.8.0/28"}, {"subnet": "fd00:9::/64"}])
    for host in living:
        has(host)

    def take(n: int) -> list[str]:
        try:
            return list(attach(living[n % 4], f"lab{n}")["addresses"])
        except CliError as exc:
            return [str(exc)]

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(take, range(16)))
    given = [answer for answer in answers if len(answer) == 2]
    assert len(given) == len({v4 for v4, _ in given}) == len({v6 for _, v6 in given}) == 13
    refused = {text for answer in answers if len(answer) == 1 for text in answer}
    assert all("pool 10.9.8.0/28 has no free address: 14 of 14 are leased" in text for text in refused), refused
    assert refused
    # Nobody kept an IPv6 address that had no IPv4 one to go with.
    used = {it["subnet"]: it["used"] for it in living[0].client.get("ipam")["pools"]}
    assert used == {"10.9.8.0/28": 14, "fd00:9::/64": 14}
    for host in living:
        assert findings(host) == []


def test_an_audit_finds_what_other_hosts_leaked(hosts: Hosts, etcd: Member) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    there = attach(two, name="db", addresses=["10.224.0.5"])
    (claim,) = (key for key in etcd.records("ipam/leases/") if key.endswith("/" + address_of(there)))
    value, pool = etcd.records(claim)[claim], claim.rpartition("/")[0]
    lost = {**value, "address": "10.224.0.77", "owner": {**value["owner"], "id": "f" * 64, "name": "lost"}}
    etcd.write(f"{pool}/10.224.0.77", lost)
    etcd.write(f"{pool}/10.224.0.78", {**lost, "address": "10.224.0.78", "host": "e" * 32})
    (told,) = etcd.records("cluster/endpoints/")
    twin = {"mac": "02:6e:0a:e0:00:4f", "addresses": ["10.224.0.79"], "names": ["twin"]}
    etcd.write(f"{told.rpartition('/')[0]}/{'d' * 64}", twin)
    assert sorted(findings(one)) == [
        "10.224.0.77 leased to endpoint lost on host host-2, which advertises no such endpoint",
        "10.224.0.78 leased to endpoint lost on host eeeeeeeeeeee, which is not in the cluster",
        "10.224.0.79 used by endpoint twin on host host-2, but not leased",
    ]
    etcd.write(f"{pool}/10.224.0.79", {**value, "address": "10.224.0.79", "host": "e" * 32})
    assert f"10.224.0.79 used by endpoint twin on host host-2, but leased to endpoint db on {'e' * 12}" in findings(one)
