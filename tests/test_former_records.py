"""What the former release stored and built becomes what a fresh build would be, at the first start of this one."""

import copy
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest_asyncio
from engine_host import NET, OTHER, Host
from former_state import RECORDS, booted, build, records
from structlog.testing import capture_logs

from netplug.drivers.naming import bridge_name
from netplug.drivers.plan import Plan
from netplug.engine.records import NetworkRecord
from netplug.store.api import Put

FORMER: Mapping[str, Any] = json.loads(RECORDS.read_text())
PROXY_ARP = f"net/ipv4/conf/{bridge_name(OTHER)}/proxy_arp"
ORDER = ("meta", "networks", "endpoints")
"""In which plans are built."""


@pytest_asyncio.fixture
async def fresh() -> AsyncIterator[Host]:
    """A host on which this version built everything, started once more."""
    host = await booted()
    await build(host)
    await host.reboot()
    yield host
    await host.close()


async def upgraded(stored: Mapping[str, Any]) -> tuple[Host, list[tuple[str, str]]]:
    """Return a host with these records and what they say was built, after the first start; and what was converged."""
    host = await booted()
    await host.store.txn((), [Put(key, value) for key, value in stored.items()])
    host.live()
    for kind in ORDER:
        for value in (value for key, value in stored.items() if key.startswith(f"{kind}/")):
            for part in ("plan", "exposed"):
                await host.engine.executor.apply(Plan.from_json(value.get(part, [])))
    with capture_logs() as said:
        await host.reboot()
    return host, [(line["what"], line["object"]) for line in said if line["event"] == "step.converged"]


async def compare(host: Host, fresh: Host) -> None:
    """Check that a host has the records and the kernel of one that was built freshly."""
    await host.check()
    assert not host.engine.quarantine
    assert host.dump() == fresh.dump()
    assert by_key(host.endpoints()) == by_key(fresh.endpoints())
    assert by_key(host.networks()) == by_key(fresh.networks())


def by_key(found: list[Any]) -> dict[str, Any]:
    """Return records by key; the former release did not note when it created a network."""
    return {it.key: replace(it, created=0.0) if isinstance(it, NetworkRecord) else it for it in found}


async def test_records_of_the_former_release_are_those_of_a_fresh_build(fresh: Host) -> None:
    host, _ = await upgraded(FORMER)
    await compare(host, fresh)
    assert {it.created for it in host.networks()} == {0.0}
    with capture_logs() as said:
        await host.reboot()
    assert not [line for line in said if line["event"] == "step.converged"]
    await host.close()


async def test_what_a_driver_built_less_or_otherwise_is_converged_and_said(fresh: Host) -> None:
    stored = copy.deepcopy(dict(FORMER))
    for key, value in stored.items():
        if key.startswith("endpoints/"):
            value["plan"] = [step for step in value["plan"] if step["step"] != "Guard"]
    stored[f"networks/{OTHER}"]["plan"].append({"step": "Sysctl", "name": PROXY_ARP, "value": "1", "restore": "0"})
    for step in stored[f"networks/{NET}"]["plan"]:
        if step["step"] == "Bridge":
            step["mtu"] = 1400
    host, said = await upgraded(stored)
    await compare(host, fresh)
    assert {what for what, _ in said} == {"added", "changed", "removed"}
    guarded = [it for it in said if it[0] == "added" and it[1].startswith("guard/")]
    assert len(guarded) == sum(step["step"] == "Guard" for step in steps(FORMER, "endpoints/"))
    assert ("changed", f"link/{bridge_name(NET)}") in said
    assert [it for it in said if it[0] == "removed"] == [("removed", f"sysctl/{PROXY_ARP}")]
    await host.close()


def steps(stored: Mapping[str, Any], prefix: str) -> list[Any]:
    return [step for key, value in stored.items() if key.startswith(prefix) for step in value["plan"]]


async def test_record_that_uses_nothing_new_has_the_fields_that_the_former_release_knows(fresh: Host) -> None:
    """So that a rollback finds it."""
    for key, value in (await records(fresh)).items():
        if key.startswith(("networks/", "endpoints/")):
            kind = key.partition("/")[0]
            assert value.keys() <= FORMER[key].keys(), key
            assert value[kind[:-1]].keys() <= FORMER[key][kind[:-1]].keys(), key
