"""The graph as text, Mermaid and DOT. A name is data: each form quotes it by its own rules."""

from collections.abc import Iterable

from netplug.insight.graph import Container, Endpoint, Graph, Host, Network


def by_network(graph: Graph) -> list[tuple[Network, list[tuple[Host, list[tuple[Container, Endpoint]]]]]]:
    """Return each network with its hosts, and their containers in it; hosts without one are left out."""
    containers = {one.key: one for one in graph.containers}
    hosts = {one.name: one for one in graph.hosts}
    found = []
    for network in graph.networks:
        members = [(containers[one.container], one) for one in graph.endpoints if one.network == network.id]
        places = []
        for name in sorted({container.host for container, _ in members}):
            here = [pair for pair in members if pair[0].host == name]
            places.append((hosts.get(name) or Host(name=name, me=False, alive=False), here))
        found.append((network, places))
    return found


def all_hosts(graph: Graph) -> list[Host]:
    """Return the hosts, and those that only containers name."""
    known = {host.name for host in graph.hosts}
    missing = sorted({one.host for one in graph.containers} - known)
    return [*graph.hosts, *(Host(name=name, me=False, alive=False) for name in missing)]


def title(host: Host) -> str:
    """Return a host in words."""
    state = "this host" if host.me else "" if host.alive else "not alive"
    return " ".join(filter(None, (host.name, host.address, f"({state})" if state else "")))


def about(network: Network) -> str:
    """Return what a network is, in words."""
    return " ".join(filter(None, (network.mode, "internal" if network.internal else "", *fill(network))))


def fill(network: Network) -> list[str]:
    """Return the subnets of a network, with their use."""
    return [f"{it.subnet} {it.used}/{it.size if it.size < 1 << 24 else 'many'}" for it in network.subnets]


def text(graph: Graph) -> str:
    """Return the graph as a tree."""
    lines = [f"host {title(host)}" for host in all_hosts(graph)]
    lines += [f"  ! {note}" for host in graph.hosts for note in host.notes]
    several = len(all_hosts(graph)) > 1
    for network, places in by_network(graph):
        lines += ["", f"network {network.name}  {about(network)}"]
        rows = [(host, *pair) for host, members in places for pair in members]
        widths = [
            max((len(one.name) for _, one, _ in rows), default=0),
            max((len(it.name) for it, _, _ in rows), default=0),
        ]
        for place, (host, container, endpoint) in enumerate(rows):
            branch = "└─" if place == len(rows) - 1 else "├─"
            cells = [container.name.ljust(widths[0]), *([host.name.ljust(widths[1])] if several else [])]
            cells += [" ".join(endpoint.addresses), " ".join(endpoint.ports), "" if endpoint.healthy else "unhealthy"]
            lines.append(f"  {branch} {'  '.join(cells)}".rstrip())
    return "\n".join(map(printable, lines))


def printable(line: str) -> str:
    """Return a line that no name of another host turns into commands for the terminal."""
    return "".join(it if it.isprintable() else "�" for it in line)


def mermaid(graph: Graph) -> str:
    """Return the graph as a Mermaid flowchart."""
    nodes, lines = _numbers(graph), ["flowchart LR"]
    for place, host in enumerate(all_hosts(graph)):
        lines.append(f"  subgraph h{place}[{_mermaid(['host ' + title(host)])}]")
        lines += [f"    {nodes[one.key]}[{_mermaid([one.name])}]" for one in graph.containers if one.host == host.name]
        lines += [f"    {nodes[net.id]}({_network(net)})" for net in graph.networks if _local(net, host)]
        lines.append("  end")
    lines += [f"  {nodes[net.id]}([{_network(net)}])" for net in graph.networks if net.shared]
    for one in graph.endpoints:
        label = _mermaid(one.addresses) if one.addresses else ""
        lines.append(f"  {nodes[one.container]} ---{f'|{label}|' if label else ''} {nodes[one.network]}")
    return "\n".join(lines)


def dot(graph: Graph) -> str:
    """Return the graph in the language of Graphviz."""
    nodes = _numbers(graph)
    lines = [
        "graph netplug {",
        '  rankdir=LR; node [fontname="sans-serif"]; edge [fontname="sans-serif", fontsize=10];',
    ]
    for place, host in enumerate(all_hosts(graph)):
        lines.append(f"  subgraph cluster_{place} {{ label={_dot(['host ' + title(host)])};")
        lines += [
            f"    {nodes[one.key]} [shape=box, label={_dot([one.name])}];"
            for one in graph.containers
            if one.host == host.name
        ]
        lines += [f"    {nodes[net.id]} [{_round(net)}];" for net in graph.networks if _local(net, host)]
        lines.append("  }")
    lines += [f"  {nodes[net.id]} [{_round(net)}];" for net in graph.networks if net.shared]
    lines += [
        f"  {nodes[one.container]} -- {nodes[one.network]} [label={_dot(one.addresses)}];" for one in graph.endpoints
    ]
    return "\n".join([*lines, "}"])


def _local(network: Network, host: Host) -> bool:
    return host.me and not network.shared


def _numbers(graph: Graph) -> dict[str, str]:
    networks = {one.id: f"n{place}" for place, one in enumerate(graph.networks)}
    return {**networks, **{one.key: f"c{place}" for place, one in enumerate(graph.containers)}}


def _network(network: Network) -> str:
    return _mermaid([network.name, about(network)])


def _round(network: Network) -> str:
    return f"shape=ellipse, label={_dot([network.name, about(network)])}"


def _mermaid(lines: Iterable[str]) -> str:
    """Quote lines: Mermaid reads ``#60;`` as the character of that number, and nothing else in quotes but tags."""
    return (
        '"'
        + "<br/>".join(
            "".join(it if it.isalnum() or it in " .:/_-()" else f"#{ord(it)};" for it in line) for line in lines
        )
        + '"'
    )


def _dot(lines: Iterable[str]) -> str:
    quoted = (line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for line in lines)
    return '"' + "\\n".join(quoted) + '"'
