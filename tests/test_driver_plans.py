"""Golden plans: each file below tests/plans/<driver> holds a network and endpoint, and what the driver makes of them.

A new case is a new file with the inputs only; ``pytest tests/test_driver_plans.py --update`` writes the rest. Read the
difference before you commit it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from netplug.drivers.api import Driver, Endpoint, HostFacts, Meshed, Network, Peer
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.codec import decode, encode
from netplug.drivers.host import HostDriver
from netplug.drivers.macvlan import MacvlanDriver
from netplug.drivers.none import NoneDriver
from netplug.drivers.overlay import OverlayDriver
from netplug.drivers.plan import Plan

PLANS = Path(__file__).parent / "plans"
DRIVERS: dict[str, Driver] = {
    "bridge": BridgeDriver(),
    "host": HostDriver(),
    "macvlan": MacvlanDriver(),
    "none": NoneDriver(),
    "overlay": OverlayDriver(),
}
CASES = sorted(PLANS.glob("*/*.json"))


def computed(driver: Driver, case: dict[str, Any]) -> dict[str, Any]:
    host = decode(HostFacts, case.get("host", {}))
    net, ep = decode(Network, case["network"]), decode(Endpoint, case["endpoint"])
    driver.check(net, (), host)
    plans = {
        "base": driver.base(net.families(), host).to_json(),
        "create_network": driver.create_network(net, host).to_json(),
        "create_endpoint": driver.create_endpoint(net, ep, host).to_json(),
        "join": encode(driver.join(net, ep)),
        "expose": driver.expose(net, ep).to_json(),
    }
    for step in (*plans["base"], *plans["create_network"]):
        if "text" in step:  # what a file has
            step["text"] = step["text"].partition("\n")[0]
    if isinstance(driver, Meshed):
        peers = [decode(Peer, peer) for peer in case["peers"]]
        for peer in peers:
            driver.check_peer(net, peer, host)
        plans |= {"publish": encode(driver.publish(net, ep, host)), "peers": driver.peers(net, peers).to_json()}
    return plans


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_plan_is_the_golden_one(path: Path, request: pytest.FixtureRequest) -> None:
    case = json.loads(path.read_text())
    plans = computed(DRIVERS[path.parent.name], case)
    if request.config.getoption("--update"):
        path.write_text(json.dumps(case | {"plans": plans}, indent=1) + "\n")
        return
    assert plans == case["plans"]


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_plan_survives_being_stored(path: Path) -> None:
    case = json.loads(path.read_text())
    for name, stored in case["plans"].items():
        if name not in {"join", "publish"}:
            assert Plan.from_json(stored).to_json() == stored


def test_a_field_that_nothing_needs_any_more_is_passed_over() -> None:
    stored = {"step": "Shortcut", "link": "l", "vxlan": "v", "mac": "02:00:00:00:00:01", "addresses": []}
    assert Plan.from_json([stored | {"gateway": "02:00:00:00:00:02"}]) == Plan.from_json([stored])


def test_there_are_golden_plans_for_each_driver() -> None:
    assert {path.parent.name for path in CASES} == set(DRIVERS)
