"""What the former release stored and built becomes what a fresh build would be, at the first start of this one."""

import copy
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import pytest_asyncio
from engine_host import NET, OTHER, Host
from former_state import OVERLAY, RECORDS, booted, build, records
from kernel_calls import Noted, noted
from structlog.testing import capture_logs

from netplug.drivers import port_ranges, tunnel_tables
from netplug.drivers.naming import bridge_name
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Element, FormerRules, Step, Table
from netplug.drivers.tables import ANTISPOOF
from netplug.engine.records import NetworkRecord
from netplug.store.api import Put

FORMER: Mapping[str, Any] = json.loads(RECORDS.read_text())
PROXY_ARP = f"net/ipv4/conf/{bridge_name(OTHER)}/proxy_arp"
ORDER = ("meta", "networks", "endpoints")
"""In which plans are built."""
RETIRED = {"Chain", "Forward", "Forwards", "Guard", "Guards", "Ingress", "IpSet", "Jump", "Member", "Shortcut"}
RETIRED |= {"Shortcuts", "Tunnels"}
MEMBER = "192.0.2.2 . 4789 . 20001"


@dataclass(frozen=True)
class Upgrade:
    """A host after the first start of this release. `said`: what was converged. `calls`: what the kernel was told."""

    host: Host
    said: list[tuple[str, str]]
    calls: list[Noted]


@pytest_asyncio.fixture
async def fresh() -> AsyncIterator[Host]:
    """A host on which this version built everything, started once more."""
    host = await booted()
    await build(host)
    await host.reboot()
    yield host
    await host.close()


async def upgraded(stored: Mapping[str, Any]) -> Upgrade:
    """Start this release on a host with these records, and with what they say was built, as far as it lives on."""
    host = await booted()
    await host.store.txn((), [Put(key, value) for key, value in stored.items()])
    host.live()
    for kind in ORDER:
        for value in (value for key, value in stored.items() if key.startswith(f"{kind}/")):
            for part in ("plan", "exposed"):
                await host.engine.executor.apply(Plan.from_json(value.get(part, [])))
    await host.kernel.ensure((FormerRules((MEMBER,)),))
    with capture_logs() as said, noted(host.kernel) as calls:
        await host.reboot()
    assert not [line for line in said if line["event"].endswith(".failed")]
    return Upgrade(host, [(line["what"], line["object"]) for line in said if line["event"] == "step.converged"], calls)


async def compare(host: Host, fresh: Host) -> None:
    """Check that a host has the records and the kernel of one that was built freshly."""
    await told(host)
    await host.check()
    assert not host.engine.quarantine
    assert host.dump() == fresh.dump()
    assert by_key(host.endpoints()) == by_key(fresh.endpoints())
    assert by_key(host.networks()) == by_key(fresh.networks())


async def told(host: Host) -> None:
    """Let the cluster tell that the overlay has no other hosts."""
    await host.engine.peers.apply(OVERLAY, ())
    await host.reconciler.repair()


def by_key(found: list[Any]) -> dict[str, Any]:
    """Return records by key, without the time at which a network was created."""
    return {it.key: replace(it, created=0.0) if isinstance(it, NetworkRecord) else it for it in found}


def steps(stored: Mapping[str, Any], prefix: str) -> list[Any]:
    values = [value for key, value in stored.items() if key.startswith(prefix)]
    return [step for value in values for part in ("plan", "exposed") for step in value.get(part, [])]


async def test_records_of_the_former_release_are_those_of_a_fresh_build(fresh: Host) -> None:
    now = await upgraded(FORMER)
    await compare(now.host, fresh)
    with capture_logs() as said:
        await now.host.reboot()
    assert not [line for line in said if line["event"] == "step.converged"]
    await now.host.close()


async def test_records_without_the_time_of_creation_load(fresh: Host) -> None:
    """An earlier release did not note it."""
    now = await upgraded({key: value for key, value in FORMER.items() if not key.startswith("created/")})
    await compare(now.host, fresh)
    assert {it.created for it in now.host.networks()} == {0.0}
    await now.host.close()


async def test_steps_that_are_no_more_are_dropped(fresh: Host) -> None:
    assert {step["step"] for step in steps(FORMER, "")} >= RETIRED
    now = await upgraded(FORMER)
    await told(now.host)
    after = await records(now.host)
    # Names by which that release leaves the anti-spoofing table and the gate after a rollback.
    assert {step["step"] for step in after["meta/base"].pop("exposed")} == {"Guards", "Chain"}
    assert not {step["step"] for step in steps(after, "")} & RETIRED
    assert after["meta/base"]["plan"] == (await records(fresh))["meta/base"]["plan"]
    assert not now.host.made(FormerRules)
    await now.host.close()


async def test_tables_come_with_all_their_elements_before_anything_is_swept(fresh: Host) -> None:
    """No packet meets a table without its elements, nor neither these nor the rules of the former release."""
    tables = {step for step in fresh.engine.base_plan.plan if isinstance(step, Table)}
    names = {f"{table.family} {table.name}" for table in tables}
    elements = {step for step in fresh.made(Element) if step.table in names}
    assert len(elements) > 80
    now = await upgraded(FORMER)
    first = next(call for call in now.calls if any(isinstance(step, Table) for step in call.steps))
    assert {*tables, *elements, tunnel_tables.member(MEMBER)} == set(parts(transaction(first.steps)))
    swept = next(call for call in now.calls if any(isinstance(step, FormerRules) for step in call.steps))
    assert (first.verb, swept.verb) == ("ensure", "remove")
    assert now.calls.index(first) < now.calls.index(next(call for call in now.calls if call.verb == "remove"))
    await now.host.close()


def transaction(given: Sequence[Step]) -> list[Step]:
    """Return the steps at the beginning of a call that are one transaction."""
    return list(takewhile(lambda step: isinstance(step, Table | Element), given))


def parts(given: Sequence[Step]) -> list[Step]:
    return [part for step in given for part in port_ranges.each(step)]


async def test_members_of_overlays_may_send_until_the_cluster_tells(fresh: Host) -> None:
    now = await upgraded(FORMER)
    accepted = tunnel_tables.member(MEMBER)
    assert accepted in now.host.made(Element)
    await now.host.reconciler.repair()
    assert accepted in now.host.made(Element)
    await told(now.host)
    assert accepted not in now.host.made(Element)
    await compare(now.host, fresh)
    await now.host.close()


async def test_what_a_driver_built_less_or_otherwise_is_converged_and_said(fresh: Host) -> None:
    stored = copy.deepcopy(dict(FORMER))
    stored[f"networks/{OTHER}"]["plan"].append({"step": "Sysctl", "name": PROXY_ARP, "value": "1", "restore": "0"})
    for step in stored[f"networks/{NET}"]["plan"]:
        if step["step"] == "Bridge":
            step["mtu"] = 1400
    now = await upgraded(stored)
    await compare(now.host, fresh)
    assert {what for what, _ in now.said} == {"added", "changed", "removed"}
    elements = {it.key for it in fresh.elements(table=ANTISPOOF)}
    assert elements <= {key for what, key in now.said if what == "added"}
    assert ("changed", f"link/{bridge_name(NET)}") in now.said
    assert [it for it in now.said if it[0] == "removed"] == [("removed", f"sysctl/{PROXY_ARP}")]
    await now.host.close()


async def test_record_that_uses_nothing_new_has_the_fields_that_the_former_release_knows(fresh: Host) -> None:
    """So that a rollback finds it."""
    for key, value in (await records(fresh)).items():
        if key.startswith(("networks/", "endpoints/")):
            kind = key.partition("/")[0]
            assert value.keys() <= FORMER[key].keys(), key
            assert value[kind[:-1]].keys() <= FORMER[key][kind[:-1]].keys(), key
