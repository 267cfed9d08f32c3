"""What routes, name servers and ports break, and what `netplug trace` says of it: a table in docs/troubleshooting.md.

As `trace_faults.py`; `test_trace_routes.py` injects each of them.
"""

from trace_faults import Row, main

BEGIN, END = "<!-- routes: python integration/trace_route_faults.py --write -->\n", "<!-- /routes -->\n"
TABLES = "ip rule show; ip route show table all"

ROWS: dict[str, Row] = {
    "rule inside": Row(
        "a rule (`ip rule`) in the container forbids the destination",
        "route.refused",
        "asker does not send to …: a route or rule of type blackhole",
        f"nsenter --net=… sh -c '{TABLES}'",
    ),
    "rule of the host": Row(
        "a rule (`ip rule`) of the host forbids the container",
        "route.refused",
        "this host does not send to …: a route or rule of type prohibit",
        TABLES,
    ),
    "blackhole": Row(
        "the host has a blackhole route",
        "route.refused",
        "this host does not send to …: a route or rule of type blackhole",
        TABLES,
    ),
    "hijacked": Row(
        "another route of the host leads to a part of the subnet, and iptables drops what is forwarded there",
        "route.hijacked",
        "this host sends to … by …, not by np-…: its route … leads there",
        "ip route del … via … dev …",
    ),
    "hijacked back": Row(
        "another route of the host leads the answer elsewhere",
        "route.hijacked",
        "this host sends to … by …, not by np-…: its route … leads there",
        "ip route del … via … dev …",
    ),
    "link of one network down": Row(
        "the link of a container is down, and it has one in another network",
        "link.down",
        "eth1 of both, network green, is down, so it sends by eth0",
        "nsenter --net=… ip link set eth1 up",
    ),
    "route of one network lost": Row(
        "a container lost the route of one of its networks",
        "route.other_link",
        "both is in network green too, but its route to … is by eth0",
        "nsenter --net=… ip route replace … dev eth1",
    ),
    "no ARP": Row(
        "ARP is off on the link of the container",
        "link.noarp",
        "eth0 on web has ARP off, so it neither asks for MACs nor answers",
        "nsenter --net=… ip link set eth0 arp on",
    ),
    "no name server": Row(
        "the resolv.conf of the container is empty",
        "dns.no_server",
        "asker has no name server in its resolv.conf, so it resolves no names",
        "docker exec asker sh -c 'echo nameserver 127.0.0.11 > /etc/resolv.conf'",
    ),
    "another name server": Row(
        "the resolv.conf of the container names another server",
        "dns.strangers",
        "the resolv.conf of asker names …, and only 127.0.0.11 knows the names of containers",
        "docker exec asker sh -c 'echo nameserver 127.0.0.11 > /etc/resolv.conf'",
    ),
    "hosts file": Row(
        "/etc/hosts of the container has an old address of the name",
        "name.hosts",
        "/etc/hosts of asker says that web is …, and its name server that it is …; nobody answers asker for …",
        "take … web out of /etc/hosts of asker",
    ),
    "stopped": Row(
        "the container is stopped",
        "stopped",
        "resting is stopped",
        "docker start resting",
    ),
    "mode host": Row(
        "the container runs with `--network host`",
        "network.host",
        "hosted uses the host's network",
        "netplug trace asker host:80",
    ),
    "mode none of Docker": Row(
        "the container runs with `--network none`",
        "network.none",
        "alone has no network (--network none)",
        "docker network disconnect none alone; docker network connect blue alone",
    ),
    "network of Docker": Row(
        "the container is in a network of Docker's own",
        "network.others",
        "apart is in bridge, which netplug does not run",
        "docker network connect blue apart",
    ),
    "nobody asks": Row(
        "nobody on the link of the host has the address that asks",
        "neighbour.none",
        "nobody answers this host for the address … (the question was last seen at …)",
        "give an address as SRC that somebody has",
    ),
    "nobody asks inside": Row(
        "nobody in the network has the address that asks",
        "neighbour.none",
        "nobody answers web for the address … (the question was last seen at …)",
        "give an address as SRC that somebody has",
    ),
    "port of the host": Row(
        "the host's port is asked for at the container",
        "not_published",
        "port 8080/tcp of web is not published; port 8080/tcp of this host leads to its port 80",
        "netplug trace outside host:8080",
    ),
    "published on loopback": Row(
        "the port is published on 127.0.0.1 only",
        "not_published",
        "port 8092/tcp of near is published on 127.0.0.1 only, not on …",
        "netplug publish near …:8092:80",
    ),
    "loopback by name": Row(
        "the port is published on 127.0.0.1 only, and is asked for by name",
        "not_published",
        "port 80/tcp of near is published on 127.0.0.1 only (port 8092), where only this host reaches it",
        "netplug publish near …:8092:80",
    ),
}

if __name__ == "__main__":
    main(ROWS, BEGIN, END)
