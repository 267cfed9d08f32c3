"""Checks of programs that take hold of links: NetworkManager, systemd-networkd, dhcpcd.

Their files say which links they would manage; NetworkManager also tells by D-Bus. A link that one of them manages loses
addresses and routes that it does not know, or gets addresses that nobody wants.
"""

import configparser
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from netplug.drivers.naming import OURS
from netplug.insight.doctor.findings import Finding, note, ok, warning
from netplug.insight.doctor.subject import HostSubject
from netplug.tasks.apart import apart

_LINKS: Mapping[str, str] = {
    "np-0123456789ab": "bridge",
    "nph0123456789ab": "veth",
    "npv0123456789ab": "vxlan",
    "nps0123456789ab": "veth",
}
"""Names of links as ours are, with their kinds."""
_NM_FILES = ("usr/lib/NetworkManager", "run/NetworkManager", "etc/NetworkManager")
_NETWORKD_FILES = (
    "etc/systemd/network",
    "run/systemd/network",
    "usr/local/lib/systemd/network",
    "usr/lib/systemd/network",
)
_OF_ONE_LINK = ("MACAddress", "PermanentMACAddress", "Path", "Driver", "SSID", "BSSID", "WLANInterfaceType")
"""Conditions of networkd that no link of ours meets."""
_NM_MEND = (
    "printf '[keyfile]\\nunmanaged-devices+=interface-name:np*\\n' > /etc/NetworkManager/conf.d/90-netplug.conf"
    " && nmcli general reload conf"
)
_NETWORKD_MEND = (
    "printf '[Match]\\nName=np*\\n[Link]\\nUnmanaged=yes\\n' > /etc/systemd/network/05-netplug.network"
    " && networkctl reload"
)


async def network_manager(host: HostSubject) -> Iterable[Finding]:
    """Find that NetworkManager would manage our links."""
    if not await _runs(host, "NetworkManager"):
        return [ok("NetworkManager does not run")]
    ours = [link.name for link in (await host.kernel.facts()).links if link.name.startswith(OURS)]
    told = await host.kernel.inspection.managed(ours)
    if has := sorted(link for link, managed in (told or {}).items() if managed):
        return [warning(f"NetworkManager manages links of netplug: {', '.join(has[:3])}", _NM_MEND)]
    open_to = await apart(lambda: sorted(set(_LINKS) - set(_unmanaged(host.root))))
    words = f"no file tells NetworkManager to leave links of netplug alone ({_shown(open_to)})"
    words += ", and it manages none of them" if told else "; it usually does"
    return [note(words, _NM_MEND)] if open_to else []


def _unmanaged(root: Path) -> Iterator[str]:
    """Yield which of the links NetworkManager leaves alone."""
    patterns: list[str] = []
    for folder in _NM_FILES:
        for path in (root / folder / "NetworkManager.conf", *sorted((root / folder / "conf.d").glob("*.conf"))):
            for name, section in _sections(path):
                if name == "keyfile":
                    patterns += re.split(r"[;,\s]+", section.get("unmanaged-devices", ""))
                    patterns += re.split(r"[;,\s]+", section.get("unmanaged-devices+", ""))
                elif name.startswith("device") and section.get("managed", "") in {"0", "false", "no"}:
                    patterns += re.split(r"[;,\s]+", section.get("match-device", "*"))
    for link in _LINKS:
        matching = [it for it in patterns if it and fnmatchcase(link, it.removeprefix("interface-name:").lstrip("="))]
        if matching and not any(it.startswith("except:") and fnmatchcase(link, it[22:]) for it in patterns):
            yield link


async def networkd(host: HostSubject) -> Iterable[Finding]:
    """Find that systemd-networkd would manage our links."""
    if not await _runs(host, "systemd-networkd"):
        return [ok("systemd-networkd does not run")]
    taken = await apart(partial(_managed, host.root))
    by_file: dict[str, list[str]] = {}
    for link, path in taken.items():
        by_file.setdefault(f"/{path.relative_to(host.root)}", []).append(link)
    return [
        warning(f"{path} lets systemd-networkd take hold of links of netplug ({_shown(links)})", _NETWORKD_MEND)
        for path, links in sorted(by_file.items())
    ]


def _managed(root: Path) -> dict[str, Path]:
    """Return the links that networkd would manage, with the files that say so: the first that matches counts."""
    files: dict[str, Path] = {}
    for folder in _NETWORKD_FILES:
        for path in (root / folder).glob("*.network"):
            files.setdefault(path.name, path)
    found: dict[str, Path] = {}
    for link, kind in _LINKS.items():
        for _, path in sorted(files.items()):
            sections = dict(_sections(path))
            if _matches(sections.get("Match", {}), link, kind):
                if sections.get("Link", {}).get("Unmanaged", "no").lower() not in {"yes", "true", "1", "on"}:
                    found[link] = path
                break
    return found


def _matches(match: Mapping[str, str], link: str, kind: str) -> bool:
    if any(it in match for it in _OF_ONE_LINK) or not match:
        return False
    kinds = {"Name": {link}, "Kind": {kind}, "Type": {kind, "ether"} if kind != "vxlan" else {"vxlan"}}
    return all(_globs(match[key], values) for key, values in kinds.items() if key in match)


def _globs(text: str, values: Iterable[str]) -> bool:
    """Return whether a value matches patterns of systemd: separated by spaces, "!" before all negates them."""
    negated = text.startswith("!")
    patterns = text.lstrip("!").split()
    return negated != any(fnmatchcase(value, pattern) for value in values for pattern in patterns)


async def dhcpcd(host: HostSubject) -> Iterable[Finding]:
    """Find that dhcpcd would give our links addresses."""
    if not await _runs(host, "dhcpcd"):
        return [ok("dhcpcd does not run")]
    text = await apart(partial(_text, host.root / "etc/dhcpcd.conf"))
    words = [line.split() for line in text.splitlines()]
    denied = [it for line in words if line[:1] == ["denyinterfaces"] for it in re.split(r"[,\s]+", " ".join(line[1:]))]
    allowed = [it for line in words if line[:1] == ["allowinterfaces"] for it in line[1:]]
    for link in _LINKS:
        if any(fnmatchcase(link, it) for it in denied) or (
            allowed and not any(fnmatchcase(link, it) for it in allowed)
        ):
            continue
        mend = "echo 'denyinterfaces np*' >> /etc/dhcpcd.conf && systemctl restart dhcpcd"
        return [warning(f"dhcpcd gives links of netplug ({link[:3]}…) addresses of its own", mend)]
    return []


async def _runs(host: HostSubject, name: str) -> bool:
    return bool(await host.kernel.programs(name, name[:15]))


def _sections(path: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), interpolation=None, allow_no_value=True)
    parser.optionxform = lambda name: name.strip()  # type: ignore[method-assign,assignment]
    try:
        parser.read_string(_text(path))
    except configparser.Error:
        return
    for name in parser.sections():
        yield name, {key: value or "" for key, value in parser[name].items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _shown(links: Sequence[str]) -> str:
    return ", ".join(sorted({f"{it[:3]}…" for it in links}))
