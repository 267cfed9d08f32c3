"""The text of the constant tables: nft takes it, and the elements of plans fit its sets, maps and chains."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from netplug.drivers import antispoof, naming, tables
from netplug.drivers.plan import Plan
from netplug.drivers.port_ranges import each
from netplug.drivers.steps import Element

FILES = sorted(Path(str(tables.__file__)).parent.glob("*.nft"))
CASES = sorted((Path(__file__).parent / "plans").glob("*/*.json"))
_HEAD = re.compile(r"^table (\w+ [\w-]+) \{$", re.MULTILINE)
TEXTS = {found[1]: path.read_text() for path in FILES if (found := _HEAD.search(path.read_text()))}
"""By table, "inet netplug"."""
FAST_PATH = "netdev netplug-fastpath"

needs_nft = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft"), reason="needs root and nft: a network namespace of its own"
)


def checked(text: str) -> str:
    """Return what nft says against a ruleset, in a network namespace of its own; empty, if nothing."""
    command = ["unshare", "-n", "nft", "-c", "-f", "-"]
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    return done.stderr


def elements() -> Iterator[Element]:
    """Yield all elements of golden plans, and of ports with any MAC. A fast path's table is named after a link."""
    for path in CASES:
        for name, stored in json.loads(path.read_text())["plans"].items():
            if name not in {"join", "publish"}:
                found = (step for step in Plan.known(stored) if isinstance(step, Element))
                yield from (replace(it, table=FAST_PATH) if it.table.startswith("netdev") else it for it in found)
    own = antispoof.own("nph0", "02:00:00:00:00:01", [IPv6Address("fd00::2")])
    yield from (step for step in antispoof.at_any_mac(own + antispoof.exempt("nph1")) if isinstance(step, Element))


def fields(text: str, name: str) -> list[str] | None:
    """Return the types of the fields of a set's or map's key; None, if the text has none of this name."""
    found = re.search(rf"^\t(?:set|map) {name} {{ (?:type|typeof) ([^:;]+)", text, re.MULTILINE)
    return found[1].strip().split(" . ") if found else None


def as_nft_reads(step: Element) -> str:
    """Return an element in nft's language: in sets of raw bytes, MACs and addresses are numbers."""
    raw = [it.startswith("@") for it in fields(TEXTS[step.table], step.set) or ()]
    words = zip(step.item.split(" . "), raw, strict=True)
    item = " . ".join(_number(word) if is_raw else f'"{word}"' if _is_name(word) else word for word, is_raw in words)
    return item + (f" : {step.data}" if step.data else "")


def _number(word: str) -> str:
    """Return bytes at an offset as nft reads them: a number."""
    if re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", word):
        return f"0x{word.replace(':', '')}"
    return f"0x{IPv6Address(word).packed.hex()}" if ":" in word else word


def _is_name(word: str) -> bool:
    return word.startswith(("np", "br"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_has_one_table_whose_text_has_no_comments_of_the_file(path: Path) -> None:
    assert len(_HEAD.findall(path.read_text())) == 1
    text = tables.text(path.stem)
    assert "#" not in text
    assert text.count("{") == text.count("}")


@needs_nft
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nft_takes_the_file_and_the_text_of_the_step(path: Path) -> None:
    assert checked(path.read_text()) == ""
    head = _HEAD.search(path.read_text())
    assert head
    assert checked(f"table {head[1]} {{\n{tables.text(path.stem)}\n}}\n") == ""


def test_elements_are_of_sets_and_lead_to_chains_that_there_are() -> None:
    found = list(elements())
    assert {step.table for step in found} >= {tables.NETWORKS, tables.ANTISPOOF, tables.HOST_MODE}
    for step in found:
        text = TEXTS[step.table]
        assert len(fields(text, step.set) or ()) == len(step.item.split(" . ")), step
        is_map = f"\tmap {step.set} {{" in text
        assert is_map == bool(step.data), step
        verb, _, chain = step.data.partition(" ")
        if verb in {"goto", "jump"}:
            assert f"\tchain {chain} {{" in text, step


def test_tables_know_links_by_the_names_and_groups_that_they_have() -> None:
    text = "\n".join(TEXTS.values())
    names = {it.rstrip("*") for it in re.findall(r'"(n[\w*-]+)"', text)}
    assert names == {naming.BRIDGES, naming.PORTS, naming.TUNNEL_ENDS, "np"}
    groups = {int(it) for it in re.findall(r"[io]ifgroup (\d+)", text)} - {0}
    assert groups <= {naming.OPEN_GROUP, naming.OTHER_GROUP}
    assert naming.OPEN_GROUP in groups


@needs_nft
def test_nft_takes_the_elements_of_all_plans() -> None:
    by_set: dict[tuple[str, str], dict[str, str]] = {}
    # A fast path's elements name links, which do not exist.
    for step in (part for it in elements() if it.table != FAST_PATH for part in each(it)):
        assert isinstance(step, Element)
        by_set.setdefault((step.table, step.set), {})[step.item] = as_nft_reads(step)
    added = [f"add element {table} {name} {{ {', '.join(it.values())} }}" for (table, name), it in by_set.items()]
    assert checked("\n".join((*TEXTS.values(), *added)) + "\n") == ""


def test_range_of_ports_is_one_element_and_many_in_the_kernel() -> None:
    element = Element(tables.NETWORKS, "published4", "192.0.2.1 . udp . 8000", "10.0.0.2 . 80", 3)
    assert element.key == "element/inet netplug/published4/192.0.2.1 . udp . 8000-8002"
    parts = list(each(element))
    assert [(it.item, it.data, it.count) for it in parts if isinstance(it, Element)] == [
        ("192.0.2.1 . udp . 8000", "10.0.0.2 . 80", 1),
        ("192.0.2.1 . udp . 8001", "10.0.0.2 . 81", 1),
        ("192.0.2.1 . udp . 8002", "10.0.0.2 . 82", 1),
    ]
