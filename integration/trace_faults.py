"""What breaks a path on one host, what `netplug trace` says of it, and the mend: the table in docs/troubleshooting.md.

`test_trace_faults.py` injects each of them. ``python integration/trace_faults.py`` prints the table, with ``--write``
into the document. In `says` and `mend`, "…" stands for any text.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
BEGIN, END = "<!-- faults: python integration/trace_faults.py --write -->\n", "<!-- /faults -->\n"


@dataclass(frozen=True)
class Row:
    """A fault. `kind`: of the cause, as `--json` has it. `reached`: the packet arrives nevertheless."""

    fault: str
    kind: str
    says: str
    mend: str = ""
    reached: bool = False

    def matches(self, words: str, mend: str) -> bool:
        return _matches(self.says, words) and _matches(self.mend, mend)


ROWS: dict[str, Row] = {
    "nobody listens": Row(
        "no process listens on the port",
        "listener.none",
        "nobody listens on port 81/tcp in web; ports that are: …",
        "start the server in web, or ask for the port that it listens on",
    ),
    "nobody listens, udp": Row(
        "no process has the UDP port",
        "listener.none",
        "nobody listens on port 81/udp in web…",
        "start the server in web, or ask for the port that it listens on",
    ),
    "loopback": Row(
        "the server listens on 127.0.0.1 only",
        "listener.loopback",
        "… in web listens on 127.0.0.1 only, where nobody but web itself reaches it",
        "have it listen on 0.0.0.0:82",
    ),
    "nft bridge": Row(
        "somebody's rule in nft, family bridge",
        "rule.foreign",
        "a rule of others drops it (nft: table bridge foreign, chain forward): …",
        "nft delete rule bridge foreign forward handle …",
    ),
    "nft netdev": Row(
        "somebody's rule in nft, family netdev",
        "rule.foreign",
        "a rule of others drops it (nft: table netdev foreign, chain ingress): …",
        "nft delete rule netdev foreign ingress handle …",
    ),
    "nft inet": Row(
        "somebody's rule in nft, family inet",
        "rule.foreign",
        "a rule of others drops it (nft: table inet foreign, chain forward): …",
        "nft delete rule inet foreign forward handle …",
    ),
    "iptables-nft": Row(
        "a rule of iptables (nft)",
        "rule.foreign",
        "a rule of others drops it (iptables-nft: table ip filter, chain FORWARD): …",
        "iptables -D FORWARD …",
    ),
    "iptables-legacy": Row(
        "a rule of iptables (legacy)",
        "rule.foreign",
        "a rule of others drops it (iptables-legacy: table ip filter, chain FORWARD): …",
        "iptables-legacy -D FORWARD …",
    ),
    "reject": Row(
        "a rule that refuses",
        "rule.foreign",
        "a rule of others rejects it (iptables-nft: table ip filter, chain FORWARD): …",
        "iptables -D FORWARD … -j REJECT --reject-with tcp-reset",
    ),
    "policy": Row(
        "a chain with policy drop",
        "rule.foreign",
        "a rule of others drops it (nft: table inet foreign, chain forward): policy drop",
        "nft 'chain inet foreign forward { policy accept ; }'",
    ),
    "host firewall": Row(
        "the firewall of the host drops what is for itself",
        "rule.foreign",
        "a rule of others drops it (iptables-nft: table ip filter, chain INPUT): …",
        "iptables -D INPUT …",
    ),
    "way back": Row(
        "a rule drops the answer",
        "rule.foreign",
        "a rule of others drops it (nft: table bridge foreign, chain forward): …",
        "nft delete rule bridge foreign forward handle …",
    ),
    "DOCKER-USER": Row(
        "a rule in DOCKER-USER",
        "rule.docker_user",
        "a rule in DOCKER-USER drops it (…): …",
        "iptables -D DOCKER-USER …",
    ),
    "firewall inside": Row(
        "a firewall inside the container",
        "rule.container",
        "the firewall inside web drops it (nft: table inet fw, chain input): …",
        "nsenter --net=… nft delete rule inet fw input handle …",
    ),
    "name unknown": Row(
        "nobody has the name",
        "name.unknown",
        "nobody in the networks of asker (blue) has the name 'nobody'…",
        "netplug ps",
    ),
    "name of another network": Row(
        "the name is in a network that the container is not in",
        "name.other_network",
        "lonely is in network green, and asker is in blue: it sees names of its own networks only",
        "docker network connect green asker",
    ),
    "address used twice": Row(
        "another station has the address",
        "address.duplicate",
        "2 stations have the address …: … and …",
        "remove … from the one that is not web",
    ),
    "neighbour": Row(
        "the container has a wrong MAC for the other one",
        "neighbour.wrong",
        "asker has MAC 02:00:00:00:00:98 for …, and that of web is …",
        "nsenter --net=… ip neighbour del … dev eth0",
    ),
    "neighbour, way back": Row(
        "the other container has a wrong MAC for the answer",
        "neighbour.wrong",
        "web has MAC 02:00:00:00:00:98 for …, and that of asker is …",
        "nsenter --net=… ip neighbour del … dev eth0",
    ),
    "neighbour of the host": Row(
        "the host has a wrong MAC for the container",
        "neighbour.wrong",
        "this host has MAC 02:00:00:00:00:98 for …, and that of web is …",
        "ip neighbour del … dev …",
    ),
    "no default route": Row(
        "the container lost its default route",
        "route.none",
        "asker has no default route of IPv4, so none to …",
        "nsenter --net=… ip route add default via …",
    ),
    "no default route, IPv6": Row(
        "the container lost its default route of IPv6",
        "route.none",
        "asker has no default route of IPv6, so none to …",
        "nsenter --net=… ip -6 route add default via …",
    ),
    "route by another network": Row(
        "the answer leaves by another network",
        "route.other_link",
        "both was asked by … and answers by …: its route to … leads there",
        "nsenter --net=… ip route replace … dev …",
    ),
    "rp_filter": Row(
        "the reverse path filter of the container",
        "rp_filter",
        "both drops what comes in by …: its route back leaves by … (rp_filter=1)",
        "nsenter --net=… sysctl -w net.ipv4.conf.….rp_filter=2",
    ),
    "bridge-nf-call-iptables": Row(
        "bridge-nf-call-iptables and a rule for forwarded packets",
        "bridge_netfilter",
        "bridge-nf-call-iptables=1 hands bridged frames to the host's firewall, and a rule drops it (…): …",
        "sysctl -w net.bridge.bridge-nf-call-iptables=0",
    ),
    "forwarding": Row(
        "the host does not forward",
        "forwarding",
        "this host does not forward IPv4 (net.ipv4.….forwarding=0)",
        "sysctl -w net.ipv4.….forwarding=1",
    ),
    "link down": Row(
        "the link of the container is down",
        "link.down",
        "eth0 on web is down",
        "nsenter --net=… ip link set eth0 up",
    ),
    "cable cut": Row(
        "the cable of the uplink is cut",
        "link.no_carrier",
        "eth0 on this host has no carrier: its other end is down, or the cable is cut",
        "bring up the other end, or connect the cable",
    ),
    "conntrack full": Row(
        "the connection tracking table is full",
        "conntrack.full",
        "the connection tracking table of this host is full (… of …)",
        "sysctl -w net.netfilter.nf_conntrack_max=…",
    ),
    "flushed set": Row(
        "somebody flushes netplug's sets again and again",
        "drift",
        "netplug's own firewall drops it (…), though the records let it pass: somebody changed that table",
        "netplug repair",
    ),
    "hairpin": Row(
        "the bridge port has hairpin off",
        "hairpin",
        "… has hairpin off, and bridge-nf-call-iptables=1 keeps the packet on its bridge",
        "bridge link set dev … hairpin on",
    ),
    "hairpin, MAC known": Row(
        "the same, and the host knows the container's MAC already",
        "hairpin",
        "… has hairpin off, and bridge-nf-call-iptables=1 keeps the packet on its bridge",
        "bridge link set dev … hairpin on",
    ),
    "not enslaved": Row(
        "somebody takes a port out of its bridge again and again",
        "port.not_enslaved",
        "…, the host side of web, is no port of bridge …",
        "ip link set … master …",
    ),
    "spoofed address": Row(
        "the container sends from an address that is not its own",
        "spoofed",
        "asker sends from …, which is not its address (…), so anti-spoofing drops it",
        "docker restart asker",
    ),
    "spoofed MAC": Row(
        "the container changed its MAC",
        "spoofed",
        "asker sends from MAC …, and its own is …, so anti-spoofing drops it",
        "docker restart asker",
    ),
    "destination paused": Row(
        "the container is paused",
        "paused",
        "web is paused: the kernel may answer for it, but no process of it does",
        "docker unpause web",
    ),
    "source paused": Row(
        "the container that asks is paused",
        "paused",
        "asker is paused, so no process of it sends",
        "docker unpause asker",
    ),
    "address lost": Row(
        "the container lost its address",
        "address.missing",
        "web does not have address …",
        "nsenter --net=… ip address add … dev eth0",
    ),
    "internal": Row(
        "the network is internal",
        "internal",
        "network closed is internal, so inner has no route to …",
        "netplug network update closed --internal false",
    ),
    "icc": Row(
        "the network has icc=false",
        "icc",
        "network quiet has icc=false: its containers do not reach each other",
        "netplug network update quiet -o icc=true",
    ),
    "other network": Row(
        "the containers are in different networks",
        "isolated",
        "lonely is in network green, asker in blue: networks are separate from each other",
        "docker network connect green asker",
    ),
    "not published": Row(
        "the port is not published",
        "not_published",
        "port 81/tcp of web is not published",
        "netplug publish web 81:81",
    ),
    "MTU": Row(
        "a link has a smaller MTU",
        "mtu",
        "packets of 1500 bytes vanish between … and …: eth0 of web has MTU 1300",
        "nsenter --net=… ip link set eth0 mtu 1500",
    ),
    "mode none": Row(
        "the network has mode none",
        "no_link",
        "nothing reaches nobody: its network has mode none",
    ),
}


def _matches(pattern: str, text: str) -> bool:
    return bool(re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), text, re.DOTALL))


def markdown(rows: Mapping[str, Row] = ROWS) -> str:
    lines = ["| what is wrong | `netplug trace` says | mend |", "|---|---|---|"]
    for row in rows.values():
        mend = (
            f"`{row.mend}`"
            if re.match(r"(nft|iptables|docker|netplug|nsenter|sysctl|bridge|ip)\b", row.mend)
            else row.mend
        )
        lines.append(f"| {row.fault} | {row.says} | {mend} |".replace("  ", " "))
    return "\n".join(lines) + "\n"


def in_document(begin: str = BEGIN, end: str = END) -> str:
    return DOCUMENT.read_text().partition(begin)[2].partition(end)[0]


def main(rows: Mapping[str, Row] = ROWS, begin: str = BEGIN, end: str = END) -> None:
    if "--write" in sys.argv:
        before, _, rest = DOCUMENT.read_text().partition(begin)
        DOCUMENT.write_text(before + begin + markdown(rows) + end + rest.partition(end)[2])
    else:
        sys.stdout.write(markdown(rows))


if __name__ == "__main__":
    main()
