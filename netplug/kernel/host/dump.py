"""What the host's own tools print of its network, as a human would ask for it: for a bug report."""

import shutil
import subprocess
from collections.abc import Mapping

from netplug.kernel.firewall import legacy_tables

DEADLINE_S = 5.0
MOST_BYTES = 4 << 20
LOG_LINES = 2000
_COMMANDS = {
    "links": "ip -d -s link show",
    "addresses": "ip addr show",
    "routes4": "ip -4 route show table all",
    "routes6": "ip -6 route show table all",
    "rules4": "ip -4 rule show",
    "rules6": "ip -6 rule show",
    "neighbours": "ip neigh show",
    "bridges": "bridge -d link show",
    "fdb": "bridge fdb show",
    "nftables": "nft -t -s list ruleset",
    "iptables-nft": "iptables-nft-save",
    "ip6tables-nft": "ip6tables-nft-save",
    "iptables-legacy": "iptables-legacy-save",
    "ip6tables-legacy": "ip6tables-legacy-save",
    "sysctl": "sysctl -a --pattern ^net\\.(ipv4|ipv6|bridge|netfilter)\\.",
    "sockets": "ss -tuln",
    "log": f"journalctl -u netplug -n {LOG_LINES} --no-pager -o short-iso",
}
"""By name. None of them shows processes, environments or labels."""
_LEGACY = {"iptables-legacy": 4, "ip6tables-legacy": 6}


def dump() -> Mapping[str, str]:
    """Return what each tool that there is prints, by name; an error, where it fails. Blocks, for a second in all."""
    found = {}
    for name, command in _COMMANDS.items():
        program, *_ = words = command.split()
        if shutil.which(program) and (name not in _LEGACY or legacy_tables.names(_LEGACY[name])):
            found[name] = _printed(words)
    return found


def _printed(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"{command[0]} cannot be run: {exc}\n"
    text = done.stdout[:MOST_BYTES].decode(errors="replace")
    error = f"{command[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')}"
    return text if not done.returncode else text + error
