"""Every snippet of docs/drivers.md: those in Python run, one after the other; those in TOML name what is there."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import import_module
from ipaddress import IPv4Interface, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from netplug.drivers.api import Driver, Endpoint, HostFacts, Network, Subnet
from netplug.drivers.registry import Drivers, fault_of
from netplug.drivers.step_types import StepTypes
from netplug.drivers.steps import Veth
from netplug.kernel.api import MISSING, Outcome

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "drivers.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def module() -> dict[str, Any]:
    found: dict[str, Any] = {"__name__": "netplug_pair"}
    for number, code in enumerate(snippets("python")):
        exec(compile(code, f"docs/drivers.md, snippet {number + 1}", "exec"), found)  # noqa: S102 - our own document
    return found


def test_every_snippet_is_of_a_language_that_is_run() -> None:
    assert TEXT.count("```") == 2 * len(snippets("python") + snippets("toml"))


def test_driver_of_the_document_is_one(module: dict[str, Any]) -> None:
    assert fault_of(module["PairDriver"]()) == ""


def test_entry_points_name_what_the_document_defines(module: dict[str, Any]) -> None:
    points = [tomllib.loads(text)["project"]["entry-points"] for text in snippets("toml")]
    named = {group: value for found in points for group, modes in found.items() for value in modes.values()}
    assert named.keys() == {"netplug.drivers", "netplug.steps"}
    for value in named.values():
        assert value.removeprefix("netplug_pair:") in module


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root and nft: a namespace of its own")
def test_nft_takes_the_table_of_the_document(module: dict[str, Any]) -> None:
    table, element = module["TABLE"], module["quiet"]
    text = f"table {table.family} {table.name} {{{table.text}}}\n"
    text += f'add element {element.table} {element.set} {{ "{element.item}" }}\n'
    command = ["unshare", "-n", "nft", "-c", "-f", "-"]
    assert subprocess.run(command, input=text, text=True, capture_output=True, check=False).stderr == ""


@pytest.fixture
def folder(module: dict[str, Any], tmp_path: Path) -> Iterator[Path]:
    before, module["FOLDER"] = module["FOLDER"], tmp_path
    yield tmp_path
    module["FOLDER"] = before


def test_step_of_the_document_is_made_compared_and_removed(module: dict[str, Any], folder: Path) -> None:
    ((cls, factory),) = module["STEPS"].items()
    StepTypes(()).add(cls, "netplug-pair")
    handler, step, other = factory(SimpleNamespace(loop=None)), cls("blue", "10.1.0.0/24"), cls("blue", "10.2.0.0/24")
    assert handler.drift(step, None) == MISSING
    assert [handler.ensure(step), handler.ensure(step)] == [Outcome.CREATED, Outcome.EQUAL]
    assert handler.drift(other, None) == "tells of 10.1.0.0/24"
    assert handler.ensure(other) is Outcome.ADJUSTED
    handler.remove(other)
    handler.remove(other)
    assert list(folder.iterdir()) == []


def test_example_plans_a_veth_without_a_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples" / "driver")
    driver: Driver = import_module("netplug_routed").RoutedDriver()
    assert fault_of(driver) == ""
    options = Drivers({"routed": driver}).parse({"mode": "routed", "mtu": "1400"})
    subnet = Subnet(ip_network("10.1.0.0/24"), IPv4Interface("10.1.0.1/24"))
    net = Network("1" * 64, "blue", (subnet,), options)
    driver.check(net, (), HostFacts())
    plan = driver.create_endpoint(net, Endpoint("2" * 64, net.id, (IPv4Interface("10.1.0.2/24"),)), HostFacts())
    veth, *rest = plan
    assert isinstance(veth, Veth)
    assert (veth.name, veth.master, veth.mtu) == ("np-222222222222", "", 1400)
    assert {"address//np-222222222222/10.1.0.1/32", "route//10.1.0.2/32/np-222222222222"} <= {step.key for step in rest}
    assert "sysctl/net/ipv4/conf/np-222222222222/proxy_arp" in {step.key for step in rest}


def test_example_has_at_most_sixty_lines_of_code() -> None:
    lines = (ROOT / "examples" / "driver" / "netplug_routed.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 60
