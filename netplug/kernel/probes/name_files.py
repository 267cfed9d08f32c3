"""The files by which the C library resolves names (/etc/hosts, /etc/resolv.conf), as a sandbox has them."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

from netplug.kernel.probes.api import IPAddress

MOST_BYTES = 1 << 20
"""Of a file: a long list of names that somebody blocks fits in. What is behind is not read."""
_MOST_WORDS = 64


def read(file: str, netns: str, pids: Sequence[int], *, of_host: bool) -> str | None:
    """Return the text of a file below /etc as processes of a namespace see it; None if there is none.

    `of_host`: what is started in a namespace without processes sees the host's, if it has none of its own.
    """
    named = netns.removeprefix("/run/netns/")
    paths = [Path(f"/proc/{pid}/root/etc") / file for pid in pids]
    paths += [Path("/etc/netns") / named / file] if named and "/" not in named else []  # ip-netns(8)
    paths += [Path("/etc") / file] if of_host else []
    return next((text for it in paths if (text := _text(it)) is not None), None)


def _text(path: Path) -> str | None:
    """Read a file of others: a pipe or device in its place does not stop us."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            return (
                file.read(MOST_BYTES).decode(errors="replace")
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                else None
            )
    except OSError:
        return None


def in_hosts(text: str, name: str) -> tuple[IPAddress, ...]:
    r"""Return the addresses of a name in the text of /etc/hosts (hosts(5)), IPv4 first.

    >>> [str(it) for it in in_hosts("10.0.0.9 db web # old\n::1 WEB\n#10.0.0.8 web", "web")]
    ['10.0.0.9', '::1']
    """
    found = dict.fromkeys(_having(text.splitlines(), name.lower()))
    return tuple(sorted(found, key=lambda it: it.version))


def _having(lines: Iterable[str], name: str) -> Iterator[IPAddress]:
    for line in lines:
        address, *names = line.partition("#")[0].lower().split() or [""]
        if name in names:
            try:
                yield ip_address(address)
            except ValueError:
                continue


def resolv_conf(text: str) -> tuple[dict[str, tuple[object, ...]], list[str]]:
    """Return fields of `Facts` that resolv.conf(5) tells, and what of it cannot be read."""
    servers: list[IPAddress] = []
    lists: dict[str, tuple[object, ...]] = {}
    lacks = []
    for line in text.splitlines():
        word, *rest = line.split()[:_MOST_WORDS] or [""]
        if word == "nameserver" and rest:
            try:
                servers.append(ip_address(rest[0]))
            except ValueError:
                lacks.append(f"resolv.conf names {rest[0]!r}, which is no address")
        elif word in {"search", "domain"}:
            lists["search"] = tuple(rest)
        elif word == "options":
            lists["resolv_options"] = (*lists.get("resolv_options", ()), *rest)
    return lists | {"nameservers": tuple(servers)}, lacks
