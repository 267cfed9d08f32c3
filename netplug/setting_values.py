"""Values of settings that have a form of their own, and the checks that settings share.

Pure, but for `group_id`, which reads the host's groups.
"""

import grp
import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

SOCKET_PATH_BYTES = 107  # sun_path of unix(7) is 108 with the final NUL


@dataclass(frozen=True, slots=True)
class AddressPool:
    """A range from which networks get subnets of prefix length `size`, like dockerd's --default-address-pool."""

    base: IPv4Network | IPv6Network
    size: int

    @classmethod
    def parse(cls, text: str) -> "AddressPool":
        """Parse dockerd's notation.

        >>> AddressPool.parse("base=10.208.0.0/12,size=24")
        AddressPool(base=IPv4Network('10.208.0.0/12'), size=24)

        Raises:
            ValueError: the text is invalid; the message names it.
        """
        parts = [part.strip().partition("=") for part in text.split(",")]
        fields = {key: value for key, _, value in parts}
        if len(parts) != 2 or fields.keys() != {"base", "size"}:
            raise ValueError(f"address pool {text!r} is not of the form base=CIDR,size=BITS")
        try:
            base = ip_network(fields["base"])
        except ValueError as exc:
            raise ValueError(f"address pool {text!r} has an invalid base: {exc}") from exc
        limit = base.max_prefixlen - 2  # gateway, broadcast and a container
        if not re.fullmatch(r"[0-9]{1,3}", fields["size"]) or not base.prefixlen <= int(fields["size"]) <= limit:
            raise ValueError(
                f"address pool {text!r} has an invalid size: it must be a number from {base.prefixlen} to {limit}"
            )
        return cls(base, int(fields["size"]))

    def __str__(self) -> str:
        return f"base={self.base},size={self.size}"


def address_and_port(text: str) -> tuple[IPv4Address | IPv6Address, int]:
    """Parse `ADDRESS:PORT`; an IPv6 address is in brackets.

    Raises:
        ValueError: the text is invalid.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError("is not of the form ADDRESS:PORT, such as 127.0.0.1:9820 or [::1]:9820") from None
    if bracketed != (address.version == 6):
        raise ValueError("is not of the form ADDRESS:PORT; an IPv6 address is in brackets")
    if not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65535:
        raise ValueError("has no port from 1 to 65535")
    return address, int(port)


def check_socket(path: Path) -> None:
    """Refuse a path that is too long for a socket.

    Raises:
        ValueError: it is.
    """
    size = len(os.fsencode(path))
    if size > SOCKET_PATH_BYTES:
        raise ValueError(f"socket {path} is {size} bytes long, the limit is {SOCKET_PATH_BYTES}")


def group_id(group: str) -> int:
    """Return the id of a group of this host. `group`: its name, or its number (group(5)).

    Raises:
        ValueError: there is no such group.
    """
    if re.fullmatch(r"[0-9]{1,9}", group):
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError("is no group of this host; groupadd makes one") from None


def subnet_or_link(text: str) -> None:
    """Refuse what is neither a subnet nor may be the name of a link.

    Raises:
        ValueError: it is neither.
    """
    if "/" in text:
        ip_network(text)
    elif not re.fullmatch(r"[^\s/:]{1,15}", text):
        raise ValueError(f"{text!r} is neither a subnet nor the name of a bridge")
