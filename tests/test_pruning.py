"""Pruning removes what nobody uses, and never a network that somebody would miss."""

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from ipaddress import ip_network

import pytest
import pytest_asyncio
from engine_host import NET, NEXT, OTHER, Host

from netplug.engine.pruning import Label, NetworkFilter, Pruned
from netplug.engine.records import FrontEnd, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError
from netplug.frontends.rest.prune_wire import PruneIn
from netplug.store.api import Put

pytestmark = pytest.mark.usefixtures("quiet")

LABELS: Mapping[str, Mapping[str, str]] = {
    "plain": {},
    "net": {"team": "net"},
    "both": {"team": "net", "keep": ""},
    "ops": {"team": "ops"},
}


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    yield host
    await host.close()


async def silent(network_id: str) -> None:
    """Docker does not answer."""


async def prune(host: Host, wanted: NetworkFilter | None = None, *, dry_run: bool = False) -> Pruned:
    return await host.engine.pruning.prune(wanted or NetworkFilter(), silent, dry_run=dry_run)


def removed(found: Pruned) -> list[str]:
    return [record.network.name for record in found.removed]


def reasons(found: Pruned) -> dict[str, str]:
    return {kept.name: kept.reason for kept in found.kept}


async def create(host: Host, name: str, **rest: object) -> None:
    options = rest.pop("options", {})
    await host.engine.networks.create(NetworkSpec("", name, options, (SubnetSpec(),), **rest))  # type: ignore[arg-type]


async def test_networks_without_endpoints_go_and_the_others_stay(host: Host) -> None:
    await host.cli_network("10.1.0.0/24", name="blue")
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    await host.attach("ns1", network=OTHER)
    would = await prune(host, dry_run=True)
    assert (removed(would), len(host.networks())) == (["blue"], 2)
    assert await prune(host) == would
    assert reasons(would) == {"red": "it has an endpoint"}
    assert [record.network.name for record in host.networks()] == ["red"]
    await host.check()


@pytest.mark.parametrize(
    ("filters", "gone"),
    [
        ({}, {"plain", "net", "both", "ops"}),
        ({"label": ["team"]}, {"net", "both", "ops"}),
        ({"label": ["team=net"]}, {"net", "both"}),
        ({"label": ["team=net", "keep"]}, {"both"}),
        ({"label!": ["team=net"]}, {"plain", "ops"}),
        ({"label!": ["keep", "team=ops"]}, {"plain", "net"}),
        ({"label": ["team"], "label!": ["keep"]}, {"net", "ops"}),
        ({"label": ["keep="]}, {"both"}),
        ({"mode": ["macvlan"]}, set()),
        ({"mode": ["macvlan", "bridge"]}, {"plain", "net", "both", "ops"}),
        ({"until": ["1h"]}, set()),
        ({"until": ["2035-01-31"]}, {"plain", "net", "both", "ops"}),
    ],
)
async def test_filters_choose_as_dockers_do(host: Host, filters: dict[str, list[str]], gone: set[str]) -> None:
    for name, labels in LABELS.items():
        await create(host, name, labels=labels)
    chosen = PruneIn.model_validate({"filters": filters}).to_filter()
    found = await prune(host, chosen)
    assert set(removed(found)) == gone
    assert found.kept == ()


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"name": ["a"]}, "filter 'name' must be one of label, label!, mode, until"),
        ({"label": ["=x"]}, "filter label='=x' names no label"),
        ({"until": ["1h", "2h"]}, "filter until is given 2 times"),
        ({"until": ["soon"]}, "filter until='soon' is neither a duration nor a time"),
        ({"until": ["1h!"]}, "neither a duration nor a time"),
        ({"until": [""]}, "neither a duration nor a time"),
    ],
)
def test_filter_that_is_wrong_is_refused_by_name(filters: dict[str, list[str]], words: str) -> None:
    with pytest.raises(NetplugError) as caught:
        PruneIn.model_validate({"filters": filters}).to_filter()
    assert words in caught.value.message


async def test_network_of_unknown_age_is_older_than_this_process(host: Host) -> None:
    await host.cli_network(name="blue")
    (record,) = host.networks()
    await host.engine.registry.save(replace(record, created=0.0))
    assert removed(await prune(host, NetworkFilter(before=time.time() - 3600), dry_run=True)) == []
    assert removed(await prune(host, NetworkFilter(before=time.time() + 1))) == ["blue"]


@pytest.mark.parametrize(
    ("claimed", "age_s", "docker_says", "reason"),
    [
        (True, 3600, False, ""),
        (True, 3600, True, "docker has it: docker network prune"),
        (True, 3600, None, "docker does not answer whether it has it"),
        (True, 1, False, "docker made it: docker network prune"),
        (False, 3600, False, "docker made it: docker network prune"),
    ],
    ids=["forgotten by docker", "docker's", "docker is silent", "docker is just creating it", "of another docker"],
)
async def test_dockers_network_goes_only_when_its_docker_knows_it_no_more(
    host: Host, claimed: bool, age_s: float, docker_says: bool | None, reason: str
) -> None:
    record = await host.docker_network()
    await host.engine.registry.save(replace(record, claimed=claimed, created=time.time() - age_s))

    async def knows(network_id: str) -> bool | None:
        assert network_id == NET
        return docker_says

    found = await host.engine.pruning.prune(NetworkFilter(), knows)
    assert [kept.reason for kept in found.kept] == ([reason] if reason else [])
    assert bool(host.networks()) is bool(reason)


async def test_podmans_network_stays(host: Host) -> None:
    await create(host, "pod", front_end=FrontEnd.NETAVARK)
    await create(host, "cni", front_end=FrontEnd.CNI)
    found = await prune(host)
    assert removed(found) == ["cni"]
    assert reasons(found) == {"pod": "podman may have it, which keeps its networks itself"}


async def test_network_that_a_container_is_just_joining_stays(host: Host) -> None:
    spec = NetworkSpec("", "cni", {}, (SubnetSpec(),), front_end=FrontEnd.CNI)
    async with host.engine.implicit_networks.joined(spec):
        assert reasons(await prune(host)) == {"cni": "a container is just joining it"}
    assert removed(await prune(host)) == ["cni"]


async def test_network_that_keeps_addresses_for_containers_to_come_back_stays(host: Host) -> None:
    await host.cli_network("10.1.0.0/24", name="blue", sticky="7d")
    await host.attach("ns1", name="web")
    await host.engine.endpoints.detach("blue", "ns1", "eth0")
    assert reasons(await prune(host)) == {"blue": "it keeps addresses for web"}


async def test_network_that_cannot_be_removed_does_not_stop_the_others(host: Host) -> None:
    for name, ident in (("blue", NET), ("green", OTHER), ("red", NEXT)):
        await host.cli_network(ident=ident, name=name)

    class Elsewhere:
        async def refuse_used(self, record: object) -> None:
            if record is host.engine.registry.network("green"):
                raise NetplugError("forbidden", "network 'green' has endpoints: 1 on host-2")

    host.engine.pruning.other_hosts = Elsewhere()
    found = await prune(host)
    assert removed(found) == ["blue", "red"]
    assert reasons(found) == {"green": "network 'green' has endpoints: 1 on host-2"}


async def test_record_that_cannot_be_read_is_kept_and_said(host: Host) -> None:
    await host.cli_network(name="blue")
    (stored,) = (await host.store.range("networks/"))[0]
    await host.store.txn((), [Put(stored.key, {**stored.value, "colour": "red"})])
    host.live()
    await host.engine.registry.load()
    assert reasons(await prune(host)) == {"blue": "it cannot be used: see netplug diff"}
    assert (await prune(host, NetworkFilter((Label("team"),)))).kept == ()
    assert (await host.store.range("networks/"))[0]


async def test_subnet_of_a_pruned_network_is_free_again(host: Host) -> None:
    await host.cli_network("10.1.0.0/24", name="blue")
    await prune(host)
    record = await host.cli_network("10.1.0.0/24", ident=OTHER, name="red")
    assert record.network.subnets[0].pool == ip_network("10.1.0.0/24")
