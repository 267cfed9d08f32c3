"""What a host's network consists of, as sorted plain lines; two of them compare to a readable diff.

Left out is what changes by itself: counters, indexes, link-local addresses, carrier, learned neighbours.
"""

import json
import re
from collections.abc import Callable
from difflib import unified_diff
from subprocess import CompletedProcess
from typing import Any, Protocol

from netplug.drivers.naming import OURS

from .netplugd import Netplug
from .wait import wait_until

Snapshot = dict[str, tuple[str, ...]]
"""Lines by section."""

SETTLE_TIMEOUT_S = 30
"""Links are deleted in the background, in groups; a link costs the kernel some 20 ms."""

_MARK = "=====8<====="
_ELEMENTS = re.compile(r"elements = \{([^}]*)\}")
_EXPIRES = re.compile(r" expires \w+")
_TABLES = ("filter", "nat", "mangle", "raw", "security")
XTABLES = frozenset(f"{family} {name}" for family in ("ip", "ip6") for name in _TABLES)
"""The tables of iptables in its nft flavour."""
_COUNTERS = re.compile(r"^\[\d+:\d+\] ")


class Runner(Protocol):
    """Where to look: a host, or something else that runs commands as one."""

    def run(self, argv: list[str], /) -> CompletedProcess[str]: ...


_PORT_FLAGS = ("hairpin", "isolated", "learning", "neigh_suppress", "proxy_arp", "locked")
_PORT_FLAGS += ("flood", "mcast_flood", "bcast_flood")


def _port(link: dict[str, Any]) -> list[str]:
    """Return the flags of a bridge port, and its state if it has a carrier."""
    info = link.get("linkinfo", {})
    if info.get("info_slave_kind") != "bridge":
        return []
    data = info["info_slave_data"]
    state = [f"state {data['state']}"] if link["operstate"] == "UP" and "LOWER_UP" in link["flags"] else []
    return [*state, *(f"{name} {'on' if data[name] else 'off'}" for name in _PORT_FLAGS if name in data)]


def _links(text: str) -> list[str]:
    lines = []
    for link in json.loads(text or "[]"):
        kind = link.get("linkinfo", {}).get("info_kind", "")
        parts = [link["ifname"], kind, f"mtu {link['mtu']}", "up" if "UP" in link["flags"] else "down"]
        parts += [f"{key} {link[key]}" for key in ("master", "address") if key in link]
        parts += [f"altname {name}" for name in link.get("altnames", ())]
        parts += ["NOARP"] if "NOARP" in link["flags"] and kind != "ifb" else []
        parts += ["stp"] if link.get("linkinfo", {}).get("info_data", {}).get("stp_state") else []
        parts += _port(link)
        lines.append(" ".join(parts))
    return sorted(lines)


def _addresses(text: str) -> list[str]:
    return sorted(
        f"{link['ifname']} {a['local']}/{a['prefixlen']}"
        for link in json.loads(text or "[]")
        for a in link.get("addr_info", ())
        if a["scope"] != "link" or a["family"] == "inet"
    )


def _routes(text: str) -> list[str]:
    noise = re.compile(r"\b(fe80:|ff00::|anycast )")
    return sorted(
        re.sub(r" (linkdown|dead)\b", "", line).strip() for line in text.splitlines() if not noise.search(line)
    )


def _sorted(text: str) -> list[str]:
    return sorted(line.strip() for line in text.splitlines() if line.strip())


def _fdb(text: str) -> list[str]:
    return [line for line in _sorted(text) if "extern_learn" in line or " static" in line or " dst " in line]


def _rules(text: str) -> list[str]:
    """Order counts in chains; built-in chains count only by their rules and by a policy other than ACCEPT."""
    lines: list[str] = []
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            if policy != "ACCEPT":
                lines.append(f"{table} :{chain} {policy}")
        elif line.startswith(("-", "[")):
            lines.append(f"{table} {_COUNTERS.sub('', line)}")
    return lines


def _sets(text: str) -> list[str]:
    return sorted(re.sub(r" (initval|timeout) \S+", "", line) for line in text.splitlines())


def _nftables(text: str) -> list[str]:
    """Each line with its table and chain or set: rules in their order, chains and elements sorted.

    Without those of iptables, which has sections of its own, and without the chains of a zone of ours in firewalld,
    which are there until its next reload.
    """
    found: dict[tuple[str, str], list[str]] = {}
    table = block = ""
    for line in map(str.strip, _ELEMENTS.sub(_in_lines, text).splitlines()):
        words = line.split()
        if words[:1] == ["table"]:
            table, block = " ".join(words[1:3]), ""
            found[table, ""] = ["table"]
        elif words and words[-1] == "{" and not block:
            block = " ".join(words[:2])
            found[table, block] = []
        elif line == "}":
            block = ""
        elif line:
            found[table, block].append(line)
    return [
        f"{table} {block}: {line}".replace(" : ", ": ")
        for (table, block), lines in sorted(found.items())
        if table not in XTABLES and not (table == "inet firewalld" and "_netplug" in block)
        for line in lines or ["empty"]
    ]


def _in_lines(elements: re.Match[str]) -> str:
    """One line an element, sorted."""
    return "\n".join(sorted(_EXPIRES.sub("", it.strip()) for it in elements[1].split(",")))


def _sockets(text: str) -> list[str]:
    return sorted({f"{columns[0]} {columns[4]}" for columns in map(str.split, text.splitlines()) if len(columns) > 4})


_SECTIONS: dict[str, tuple[str, Callable[[str], list[str]]]] = {
    "links": ("ip -d -j link", _links),
    "addresses": ("ip -j addr", _addresses),
    "routes": ("ip -4 route show table all", _routes),
    "routes6": ("ip -6 route show table all", _routes),
    "policy": ("ip -4 rule; ip -6 rule", _sorted),
    "neighbours": ("ip neigh show nud permanent", _sorted),
    "fdb": ("bridge fdb show", _fdb),
    "iptables": ("iptables-nft-save || iptables-save", _rules),
    "ip6tables": ("ip6tables-nft-save || ip6tables-save", _rules),
    "iptables legacy": ("iptables-legacy-save", _rules),
    "ip6tables legacy": ("ip6tables-legacy-save", _rules),
    "sets": ("ipset save", _sets),
    "nftables": ("nft -s list ruleset", _nftables),
    "sockets": ("ss -H -lntu", _sockets),
    "netns": ("ls /run/netns", _sorted),
    "limits": ("tc qdisc show | grep -E 'qdisc (tbf|ingress)' | sed 's/refcnt [0-9]* *//'", _sorted),
    "sysctls": (
        (
            "cd /proc/sys/net && grep -rs . ipv4/ip_forward ipv[46]/conf/all ipv[46]/conf/default bridge"
            " ipv[46]/conf/np-*/accept_* ipv4/conf/np-*/forwarding"
        ),
        _sorted,
    ),
}
_SCRIPT = "\n".join(f"({command}) 2>/dev/null; echo '{_MARK}'" for command, _ in _SECTIONS.values())

_LISTINGS = ("ipam", "networks", "endpoints")
"""Of the daemon's API: what `netplug ipam ls`, `network ls` and `ps` show, without a process for each."""


def snapshot(host: Runner, netplug: Netplug | None = None) -> Snapshot:
    """Return the host's network state, with netplug's own view when its daemon is given."""
    texts = host.run(["sh", "-c", _SCRIPT]).stdout.split(f"{_MARK}\n")
    taken: Snapshot = {
        name: tuple(parse(text)) for (name, (_, parse)), text in zip(_SECTIONS.items(), texts, strict=False)
    }
    if netplug is not None and netplug.running:
        for listing in _LISTINGS:
            found = next(iter(netplug.client.get(listing).values()))
            taken[f"netplug {listing}"] = tuple(_flat(found))
    return taken


def _flat(listing: Any) -> list[str]:
    """One line an item of a JSON listing, or one for all if it is no list."""
    items = listing if isinstance(listing, list) else [listing]
    return sorted(json.dumps(item, sort_keys=True) for item in items)


def difference(before: Snapshot, after: Snapshot) -> str:
    """Return a diff by section, or nothing when they are the same."""
    lines: list[str] = []
    for section in {**before, **after}:
        old, new = before.get(section, ()), after.get(section, ())
        if old != new:
            lines += [
                f"{section}:",
                *(line.rstrip() for line in unified_diff(old, new, n=0) if line[:2] not in ("--", "++", "@@")),
            ]
    return "\n".join(lines)


def assert_same(before: Snapshot, take: Callable[[], Snapshot], timeout_s: float = SETTLE_TIMEOUT_S) -> None:
    """Take snapshots until one equals `before`.

    Raises:
        AssertionError: none did; holds the difference of the last.
    """
    last = ""

    def same() -> bool:
        nonlocal last
        last = difference(before, take())
        return not last

    try:
        wait_until(same, timeout_s)
    except AssertionError:
        raise AssertionError(f"left behind (+) or lost (-):\n{last}") from None


def links_are_gone(*hosts: Runner) -> None:
    """Wait until no link of netplug's is left: they are deleted in the background, after the answer."""

    def left(host: Runner) -> list[str]:
        names = (link["ifname"] for link in json.loads(host.run(["ip", "-j", "link"]).stdout))
        return [name for name in names if name.startswith(OURS)]

    wait_until(lambda: not any(map(left, hosts)), SETTLE_TIMEOUT_S, "links of netplug's are gone")
