"""docs/firewall.md tells of the tables that there are, line by line.

After a change to a table: ``pytest tests/test_firewall_doc.py --update`` writes the listing anew, with the explanations
of the lines that it had. What is new has to be explained by hand: the test names it.
"""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import TypeVar

import pytest

from netplug.drivers import tables
from netplug.drivers.api import Endpoint, HostFacts, Network, PortMapping, Subnet
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.options import NetworkOptions
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Element, Hook, Proto, Table
from netplug.frontends.rest.firewall_wire import FirewallOut
from netplug.kernel import libc
from netplug.kernel.firewall import gate_rules, libnftables
from netplug.kernel.firewall.tables import Tables

DOCUMENT = Path(__file__).parent.parent / "docs" / "firewall.md"
TEXT = DOCUMENT.read_text()
CLONE_NEWNET = 0x40000000
_FILES = sorted(Path(str(tables.__file__)).parent.glob("*.nft"))
_TABLES = {
    found[1].replace("netplug-fastpath", "netplug-npv…"): path.read_text()
    for path in _FILES
    for found in re.finditer(r"^table (\w+ [\w-]+) \{$", path.read_text(), re.MULTILINE)
}
"""By name, as the document has it."""
_LISTING = re.compile(r"^(```nft\n)(table inet netplug \{\n.*?)(^```)", re.DOTALL | re.MULTILINE)
_DIGESTS = re.compile(r"netplug [0-9a-f]{16} [0-9a-f]{16}")
_ALIASES = {"raw": -300, "dstnat": -100, "filter": 0, "srcnat": 100}
"""Priorities by name (nft(8))."""
_T = TypeVar("_T")

needs_nft = pytest.mark.skipif(
    os.geteuid() != 0 or bool(libnftables.missing()) or not shutil.which("nft"),
    reason="needs root and nft: a network namespace of its own",
)


@dataclass(frozen=True)
class Line:
    """A line of a listing. `place`: the chain, set or map that it is in. `why`: what the document says of it.

    `above`: whether it says so in lines before it.
    """

    place: str
    words: str
    why: tuple[str, ...] = ()
    above: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.place, _DIGESTS.sub("netplug …", self.words)

    @property
    def explains_itself(self) -> bool:
        """Whether it says nothing of packets: an end, a type, a flag, or what is a comment itself."""
        return bool(re.fullmatch(r'\}|(table|map|set|chain) .*|type [^;]+|flags .*|comment ".*"|', self.words))


def lines(text: str) -> list[Line]:
    found, place, above = [], "", list[str]()
    for line in text.splitlines():
        words, _, why = line.strip().partition("  # ")
        if words.startswith("# "):
            above.append(words[2:])
            continue
        if opened := re.fullmatch(r"((?:map|set|chain) [\w-]+) \{", words):
            place = opened[1]
        found.append(Line(place, words, (why,) if why else tuple(above), above=bool(above) and not why))
        above = []
        if words == "}":
            place = ""
    return found


def documented() -> list[Line]:
    (found,) = _LISTING.findall(TEXT)
    return lines(found[1])


def in_a_namespace(work: Callable[[], _T]) -> _T:
    """Run something in a network namespace of its own, in a thread that ends with it."""
    results: list[_T] = []

    def run() -> None:
        libc.call("unshare", CLONE_NEWNET)
        results.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def two_networks() -> Plan:
    """Return the plan of the document's host: blue is open, and publishes a port; green is internal."""
    driver, host = BridgeDriver(), HostFacts()
    blue = _network("b1b1b1b1b1b1", "blue", "10.208.0.0/24")
    green = replace(_network("9e9e9e9e9e9e", "green", "10.208.1.0/24"), internal=True)
    ports = (PortMapping(Proto.TCP, 80, None, 8080),)
    web = Endpoint("0eb0eb0eb0eb", blue.id, (ip_interface("10.208.0.2/24"),), ports=ports)
    networks = driver.create_network(blue, host) + driver.create_network(green, host)
    return driver.base((4,), host) + networks + driver.create_endpoint(blue, web, host) + driver.expose(blue, web)


def _network(id_: str, name: str, pool: str) -> Network:
    subnet = Subnet(ip_network(pool), ip_interface(pool.replace(".0/", ".1/")))
    return Network(id_, name, (subnet,), NetworkOptions(mtu=1500))


def listed() -> str:
    """Return what nft prints of the two networks' table."""

    def work() -> str:
        with closing(Tables()) as loaded:
            loaded.ensure([step for step in two_networks() if isinstance(step, Table | Element | Hook)])
        command = ["nft", "list", "table", "inet", "netplug"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return in_a_namespace(work)


def written(listing: Sequence[Line], known: Sequence[Line]) -> str:
    """Return a listing as in the document, with the explanations that there are, which are known for the same lines."""
    said = {line.key: line for line in known}
    out, depth, inside = [], 0, False
    for line in listing:
        depth -= line.words == "}"
        indent = " " * (21 if inside else 4 * depth)
        old = said.get(line.key, line)
        if old.above:
            out += [f"{indent}# {why}" for why in old.why]
        out.append(f"{indent}{line.words}{''.join(f'  # {why}' for why in old.why if not old.above)}".rstrip())
        inside = not line.words.endswith("}") if line.words.startswith("elements") else inside
        inside = inside and not line.words.endswith("}")
        depth += line.words.endswith(" {")
    return "\n".join(out) + "\n"


@needs_nft
def test_listing_is_what_nft_prints_of_two_networks(request: pytest.FixtureRequest) -> None:
    found, told = lines(listed()), documented()
    if request.config.getoption("--update"):
        new = written(found, told)
        DOCUMENT.write_text(_LISTING.sub(lambda it: f"{it[1]}{new}{it[3]}", DOCUMENT.read_text()))
    else:
        words = "the table differs: run pytest tests/test_firewall_doc.py --update, then explain new lines"
        assert [it.key for it in told] == [it.key for it in found], words


def test_each_line_of_the_listing_is_explained() -> None:
    told = lines(_LISTING.findall(DOCUMENT.read_text())[0][1])
    unexplained = [it.key for it in told if not it.why and not it.explains_itself]
    # A set says what it is for in the listing itself, or after a #.
    explained = {it.place for it in told if it.words.startswith("comment ")} | {it.place for it in told if it.why}
    bare = {it.place for it in told if it.place} - explained
    chains = [it.words for it in told if it.words.startswith("chain ") and not it.why]
    assert (unexplained, bare, chains) == ([], set(), [])


def test_explanations_are_short_enough_to_read() -> None:
    assert [it for it in _LISTING.findall(TEXT)[0][1].splitlines() if len(it) > 130] == []


def section(table: str) -> str:
    """Return what the document says of a table other than that of the networks."""
    found = re.search(rf"^### `{re.escape(table)}`.*?(?=^##)", TEXT, re.DOTALL | re.MULTILINE)
    assert found, f"no section of {table}"
    return found[0]


@pytest.mark.parametrize("table", sorted(_TABLES.keys() - {tables.NETWORKS}))
def test_chains_and_sets_of_other_tables_are_told_of(table: str) -> None:
    names = set(re.findall(r"^\t(?:set|map|chain) (\w+) ", _TABLES[table], re.MULTILINE))
    rows = "".join(row for row in section(table).splitlines() if row.startswith("| `"))
    assert names == set(re.findall(r"`(\w+)`", "".join(re.findall(r"\| (`.*?) \|", rows))))


def base_chains() -> Iterator[tuple[str, int, str, str]]:
    """Yield hook, priority, table and chain of all base chains."""
    pattern = r"chain (\w+) \{\n\t\ttype \w+ hook (\w+) priority (\w+)?( [-+] \d+|-\d+)?;"
    for table, text in _TABLES.items():
        for name, hook, base, offset in re.findall(pattern, text):
            where = f"bridge {hook}" if table.startswith("bridge") else hook
            where = "output, in a container" if table.startswith("ip ") else where
            yield where, _ALIASES[base or "filter"] + int(offset.replace(" ", "") or 0), table, name


def test_path_of_a_packet_has_each_base_chain_in_order() -> None:
    part = TEXT[TEXT.index("## The path of a packet") : TEXT.index("## Two networks")]
    hook, rows = "", list[tuple[str, int, str, str]]()
    priorities: dict[str, list[int]] = {}
    for row in re.findall(r"^\|(.*)\|$", part, re.MULTILINE)[2:]:
        at, priority, chain, _ = (it.strip() for it in row.split(" | "))
        hook = at or hook
        priorities.setdefault(hook, []).append(int(re.findall(r"-?\d+", priority)[0]))
        if found := re.fullmatch(r"`([^`]+)`, `(\w+)`", chain):
            rows.append((hook, priorities[hook][-1], found[1], found[2]))
    assert set(rows) == set(base_chains())
    assert all(it == sorted(it) for it in priorities.values())


def test_gate_of_the_document_is_that_which_is_made() -> None:
    part = TEXT[TEXT.index("## The gate in iptables") : TEXT.index("## Beside Docker")]
    told = re.findall(r"^-A (NETPLUG-\w+) (.*)$", part, re.MULTILINE)
    made = gate_rules.rules_of(gate_rules.Filter(), ())
    assert told == [(name, rule) for name, rules in made.items() for rule in rules]


@needs_nft
@pytest.mark.parametrize(
    "block", re.findall(r"^```nft\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE), ids=lambda it: it[:18]
)
def test_nft_takes_what_the_document_shows(block: str) -> None:
    done = subprocess.run(
        ["unshare", "-n", "nft", "-c", "-f", "-"], input=block, text=True, capture_output=True, check=False
    )
    assert done.stderr == ""


def test_data_of_the_document_have_the_fields_of_the_api() -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    data = json.loads(block)
    assert FirewallOut.model_validate(data).model_dump() == data
    part = TEXT[TEXT.index("## As data") :]
    assert re.findall(r"^\| `(\w+)` ", part, re.MULTILINE) == list(data)
