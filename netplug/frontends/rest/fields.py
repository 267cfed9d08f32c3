"""Types of the fields of requests, each with its check. An error names the value and what it must be."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from netplug.drivers.checked_texts import is_namespace
from netplug.drivers.link_names import is_link_name
from netplug.drivers.steps import IPAddress, IPNetwork
from netplug.engine.network_checks import MOST_LABELS
from netplug.ipam.errors import IpamError
from netplug.ipam.pool import parse_address, parse_network

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
MOST = 1024
"""Elements of a list: ports are expanded from ranges, so there may be many, but not without end."""


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{text[:80]!r} is not a name: 1 to 128 letters, digits, '_', '.' or '-', beginning with a letter or digit"
        )
    return text


def unicast_mac(text: str) -> str:
    if not _MAC.fullmatch(text) or int(text[:2], 16) & 1:
        raise ValueError(f"{text[:80]!r} is not a unicast MAC")
    return text.lower()


def _ifname(text: str) -> str:
    if not is_link_name(text):
        raise ValueError(f"{text[:80]!r} is not an interface name of 1 to 15 characters")
    return text


def _netns(text: str) -> str:
    if not is_namespace(text):
        raise ValueError(f"{text[:80]!r} is neither an absolute path nor a name")
    return text


def _network(value: object) -> IPNetwork:
    try:
        return parse_network(str(value)[:80])
    except IpamError as exc:
        raise ValueError(str(exc)) from None


def _address(value: object) -> IPAddress:
    try:
        return parse_address(str(value)[:80])
    except ValueError:
        raise ValueError(f"{str(value)[:80]!r} is not an IP address") from None


def _labels(found: dict[str, str]) -> dict[str, str]:
    for key in found:
        if not key or "=" in key or not key.isprintable() or key != key.strip():
            raise ValueError(f"{key[:80]!r} is not the key of a label: printable characters, without '='")
    if (size := sum(len(key) + len(value) for key, value in found.items())) > MOST_LABELS:
        raise ValueError(f"{size} characters of labels are more than {MOST_LABELS}")
    return found


Labels = Annotated[dict[str, str], AfterValidator(_labels)]
Name = Annotated[str, AfterValidator(_name)]
Mac = Annotated[str, AfterValidator(unicast_mac)]
Ifname = Annotated[str, AfterValidator(_ifname)]
Netns = Annotated[str, AfterValidator(_netns)]
Cidr = Annotated[IPNetwork, BeforeValidator(_network)]
Ip = Annotated[IPAddress, BeforeValidator(_address)]
Ref = Annotated[str, Field(min_length=1, max_length=256)]
Port = Annotated[int, Field(ge=1, le=65535)]
HostPort = Annotated[int, Field(ge=0, le=65535)]
