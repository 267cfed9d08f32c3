"""From command-line texts to bodies of the REST API; an error names the text and has exit code 2."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, TypeAlias

from netplug.cli import USAGE, CliError
from netplug.cli.ports import parse
from netplug.drivers.link_names import is_link_name

_Network: TypeAlias = IPv4Network | IPv6Network
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def subnets(cidrs: Sequence[str], gateways: Sequence[str], ranges: Sequence[str]) -> list[dict[str, Any]]:
    """Return the requested subnets, each with its gateway and range."""
    wanted = [(network(text, "--subnet"), text) for text in cidrs]
    rows: list[dict[str, Any]] = [{"subnet": str(net), "gateway": None, "range": None} for net, _ in wanted]
    for text in gateways:
        ip = ip_address(address(text, "--gateway"))
        index = _home([net for net, _ in wanted], ip, f"--gateway {text}")
        _set(rows[index], "gateway", text)
    for text in ranges:
        part = network(text, "--ip-range")
        index = _home([net for net, _ in wanted], part, f"--ip-range {text}")
        _set(rows[index], "range", str(part))
    return rows


def _home(nets: Sequence[_Network], what: _Network | IPv4Address | IPv6Address, words: str) -> int:
    """Return the index of the subnet that contains an address or a range."""
    if not nets:
        raise CliError(USAGE, f"{words} needs a --subnet")
    first = what if isinstance(what, IPv4Address | IPv6Address) else what.network_address
    last = what if isinstance(what, IPv4Address | IPv6Address) else what.broadcast_address
    for index, net in enumerate(nets):
        if first in net and last in net:
            return index
    raise CliError(USAGE, f"{words} is not in subnet {' or '.join(map(str, nets))}")


def _set(row: dict[str, Any], key: str, value: str) -> None:
    if row[key] is not None:
        raise CliError(USAGE, f"subnet {row['subnet']} has two values of {key}: {row[key]} and {value}")
    row[key] = value


def network(text: str, flag: str) -> _Network:
    """Parse an address range."""
    try:
        net = ip_network(without_zone(text), strict=False)
    except ValueError:
        raise CliError(
            USAGE, f"{flag} {text[:80]!r} is not an address range", hint="write it as 10.1.0.0/16 or fd00:1::/64"
        ) from None
    try:
        return ip_network(text)
    except ValueError:
        raise CliError(USAGE, f"{flag} {text} has host bits set", hint=f"did you mean {net}?") from None


def without_zone(text: str) -> str:
    """Return a text, or raise ValueError: a zone (RFC 4007 §11) is a host's own name of a link, and may be anything."""
    if "%" in text:
        raise ValueError(text)
    return text


def address(text: str, flag: str) -> str:
    """Parse an address."""
    try:
        return str(ip_address(without_zone(text)))
    except ValueError:
        raise CliError(USAGE, f"{flag} {text[:80]!r} is not an IP address") from None


def options(texts: Sequence[str], mode: str | None) -> dict[str, str]:
    """Parse ``-o key=value``, and ``--mode``, which is short for ``-o mode=``."""
    pairs = [("mode", mode)] if mode is not None else []
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise CliError(USAGE, f"option {text[:80]!r} is not of the form key=value")
        pairs.append((key, value))
    found: dict[str, str] = {}
    for key, value in pairs:
        if found.setdefault(key, value) != value:
            raise CliError(USAGE, f"option {key!r} is given as {found[key]!r} and as {value!r}")
    return found


def boolean(text: str, flag: str) -> bool:
    """Parse ``true`` or ``false``."""
    found = {"true": True, "false": False}.get(text.lower())
    if found is None:
        raise CliError(USAGE, f"{flag} {text[:80]!r} is neither true nor false")
    return found


def labels(texts: Sequence[str]) -> dict[str, str]:
    """Parse ``--label key=value``; as with Docker, a label may lack a value, and the last one of a key holds."""
    found: dict[str, str] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key.strip():
            raise CliError(USAGE, f"label {text[:80]!r} is not of the form key=value")
        found[key] = value
    return found


def filters(texts: Sequence[str]) -> dict[str, list[str]]:
    """Parse ``--filter key=value``, and ``--filter label!=value``, whose key is ``label!``."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise CliError(USAGE, f"filter {text[:80]!r} is not of the form key=value")
        found.setdefault(key, []).append(value)
    return found


def netns(text: str) -> str:
    """Make a path absolute, since the daemon has another working directory; leave a name unchanged."""
    if not text:
        raise CliError(USAGE, "--netns is empty")
    if "/" not in text:
        return text
    path = os.path.normpath(Path(text).absolute())
    if path.startswith(("/proc/self/", "/proc/thread-self/")):
        raise CliError(USAGE, f"--netns {text} would be the daemon's own namespace", hint="use /proc/PID/ns/net")
    return path


def ifname(text: str) -> str:
    """Check the name of an interface (15 bytes at most, IFNAMSIZ)."""
    if not is_link_name(text):
        raise CliError(
            USAGE, f"--ifname {text[:80]!r} is not an interface name", hint="1 to 15 characters, no space, / or :"
        )
    return text


def mac(text: str) -> str:
    """Check the MAC of an endpoint; empty if none was given."""
    if not text:
        return ""
    if not _MAC.fullmatch(text) or int(text[:2], 16) & 1:
        raise CliError(USAGE, f"--mac {text[:80]!r} is not a unicast MAC", hint="write it as 02:42:0a:01:00:02")
    return text.lower()


def ports(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Parse published ports."""
    try:
        return [asdict(port) for text in texts for port in parse(text)]
    except ValueError as exc:
        raise CliError(USAGE, str(exc)) from None
