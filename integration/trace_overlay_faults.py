"""What breaks a path between two hosts, and what `netplug trace` says of it: a table in docs/troubleshooting.md.

As `trace_faults.py`; `test_trace_overlay.py` injects each of them. Rows whose `reached` is true are said in a hop that
is no obstacle.
"""

from trace_faults import Row, main

BEGIN, END = "<!-- overlay: python integration/trace_overlay_faults.py --write -->\n", "<!-- /overlay -->\n"

UNREACHABLE = (
    "VTEP … of host … does not answer…, and neither does its netplug (…): the host is down, or cut off, or has another "
    "address now"
)
MEND_HOST = "start host …, or mend its network; if it is gone for ever: netplug host forget …"

ROWS: dict[str, Row] = {
    "nobody listens there": Row(
        "no process listens on the port, on the other host",
        "listener.none",
        "nobody listens on port 81/tcp in db…",
        "on host …: start the server in db, or ask for the port that it listens on",
    ),
    "paused there": Row(
        "the container on the other host is paused",
        "paused",
        "shop is paused: the kernel may answer for it, but no process of it does",
        "on host …: docker unpause shop",
    ),
    "link down there": Row(
        "the link of the container on the other host is down",
        "link.down",
        "eth0 on db is down",
        "on host …: nsenter --net=… ip link set eth0 up",
    ),
    "firewall inside there": Row(
        "a firewall inside the container on the other host",
        "rule.container",
        "the firewall inside db drops it (nft: table inet fw, chain input): …",
        "on host …: nsenter --net=… nft delete rule inet fw input handle …",
    ),
    "MTU lowered silently": Row(
        "the underlay drops large packets, and tells nobody",
        "underlay.mtu",
        "packets of 1450 bytes are lost between the hosts: they are 1500 bytes in VXLAN, and the way from … to … "
        "carries about …, and nobody says so",
        "raise the MTU of the underlay, or: netplug network update blue -o mtu=…",
    ),
    "MTU lowered, daemon stopped": Row(
        "the underlay drops large packets, and the daemon of the other host does not run",
        "underlay.mtu",
        "packets of 1450 bytes are lost between the hosts: they are 1500 bytes in VXLAN, and the way from … to … "
        "carries about …, and nobody says so",
        "raise the MTU of the underlay, or: netplug network update blue -o mtu=…",
    ),
    "UDP 4789 blocked between": Row(
        "a router between the hosts drops UDP port 4789",
        "underlay.blocked",
        "it leaves this host and does not come to host …, though VTEP … answers an echo request: something between the"
        " hosts drops UDP port 4789",
        "let UDP port 4789 pass between … and …",
    ),
    "UDP 4789 blocked on the way back": Row(
        "the router drops UDP port 4789 on the way back only",
        "underlay.blocked",
        "it leaves host … and does not come to this host, though VTEP … answers an echo request: something between the"
        " hosts drops UDP port 4789",
        "let UDP port 4789 pass between … and …",
    ),
    "UDP 4789 blocked here": Row(
        "a rule on this host drops UDP port 4789",
        "rule.foreign",
        "a rule of others drops it (nft: table inet foreign, chain output): …",
        "nft delete rule inet foreign output handle …",
    ),
    "UDP 4789 blocked there": Row(
        "a rule of iptables on the other host drops UDP port 4789",
        "rule.foreign",
        "a rule of others on host … drops it (iptables-nft: table ip filter, chain INPUT): …",
        "on host …: iptables -D INPUT …",
    ),
    "FDB entry rewritten": Row(
        "another program keeps sending the frames to a wrong VTEP",
        "tunnel.wrong_vtep",
        "this host sends frames for db to VTEP 198.51.9.9, and host … has …",
        "netplug repair",
    ),
    "FDB entry lost, daemon down": Row(
        "the other host lost its FDB entry for the answer, and its daemon does not run to heal it",
        "far.not_alive",
        "host … is not alive: its netplug does not run, or does not reach the store. VTEP … answers an echo request: "
        "the host lives, and is reached",
        "see netplug host ls, and start it there",
    ),
    "address claimed by another host": Row(
        "the address of the other container is leased to a third host",
        "peer.unknown",
        "this host does not know where db on host … is: endpoint …: address … is leased to host …: the endpoint is "
        "ignored",
        "netplug diff",
    ),
    "from the host itself": Row(
        "the host itself asks a container on another host",
        "anycast",
        "this host sends from 10.90.7.1, which is the gateway of each host: host … takes the answer",
        "ask from a container, or on host …: netplug publish db PORT, and ask for …",
    ),
    "link of the underlay down here": Row(
        "the link with the VTEP of this host is down",
        "underlay.link",
        "this host sends no VXLAN: …: the link with the VTEP is down, or has no carrier",
        "ip link set … up",
    ),
    "no route here": Row(
        "this host has no route to the VTEP of the other",
        "underlay.no_route",
        "this host has no route to VTEP … of host …: network is unreachable",
        "ip route add … via ROUTER",
    ),
    "this host cut off": Row(
        "a switch or router lets nothing of this host through, and its link stays up",
        "host.cut_off",
        "neither VTEP … of host … nor the shared store answers…: this host is cut off from the others",
        "netplug doctor",
    ),
    "cable cut there": Row(
        "the cable of the other host is cut",
        "host.unreachable",
        UNREACHABLE,
        MEND_HOST,
    ),
    "other host dead": Row(
        "the other host lost its power",
        "host.unreachable",
        UNREACHABLE,
        MEND_HOST,
    ),
    "VTEP changed": Row(
        "the other host has another address, and its daemon does not run to tell it",
        "host.unreachable",
        UNREACHABLE,
        MEND_HOST,
    ),
    "daemon hangs": Row(
        "the daemon of the other host hangs; packets pass",
        "far.silent",
        "host … did not answer within 4 s",
        "see whether netplug runs there, and reaches the store",
        reached=True,
    ),
    "daemon killed": Row(
        "the daemon of the other host was killed some seconds ago; packets pass",
        "far.silent",
        "host … did not answer within 4 s",
        "see whether netplug runs there, and reaches the store",
        reached=True,
    ),
    "store down": Row(
        "the store that the hosts share does not answer; packets pass",
        "far.store",
        "host … cannot be asked, since questions go by the shared store: …",
        "see netplug doctor",
        reached=True,
    ),
    "daemon stopped": Row(
        "the daemon of the other host does not run; packets pass",
        "far.not_alive",
        "host … is not alive: its netplug does not run, or does not reach the store",
        "see netplug host ls, and start it there",
        reached=True,
    ),
}

if __name__ == "__main__":
    main(ROWS, BEGIN, END)
