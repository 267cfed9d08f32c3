"""The state of a lab: daemons, containers, reachability, and name resolution."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from netplug.errors import NetplugError
from netplug.lab.containers import Container
from netplug.lab.file import ETCD, Lab
from netplug.lab.probe import answers, ask
from netplug.lab.state import State

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Reachability:
    """Whether a container reaches another container at one of its addresses."""

    network: str
    source: str
    target: str
    address: str
    answers: bool

    def __str__(self) -> str:
        return f"{self.source} does not reach {self.target} at {self.address} in network {self.network!r}"


@dataclass(frozen=True, slots=True)
class Resolved:
    """Whether a container resolves another's name to all its addresses. `reason`: why not; empty if it does."""

    network: str
    source: str
    target: str
    name: str
    resolves: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.source} does not resolve {self.name!r} in network {self.network!r}: {self.reason}"


def reach(state: State) -> list[Reachability]:
    """Probe all pairs that a network should connect, in both directions and at each address."""
    sources = _namespaces(state, state.lab.pairs())
    asked = [
        (network, source, target, address)
        for network, one, two in state.lab.pairs()
        for source, target in ((one, two), (two, one))
        for address in state.containers.get(target, {}).get(network, ())
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda it: it[1] in sources and answers(sources[it[1]], it[3]), asked)
        return [Reachability(*it, result) for it, result in zip(asked, found, strict=True)]


def names(state: State) -> list[Resolved]:
    """Query the name servers of each container for its neighbours' names; skip containers without a name server."""
    sources = _namespaces(state, state.lab.named_pairs())
    asked = [
        (network, source, target)
        for network, one, two in state.lab.named_pairs()
        for source, target in ((one, two), (two, one))
        if state.servers.get(source, {}).get(network) and state.containers.get(target, {}).get(network)
    ]

    def resolved(network: str, source: str, target: str) -> Resolved:
        name, netns = f"{target}.{network}", sources.get(source)
        servers, addresses = state.servers[source][network], state.containers[target][network]
        reason = _unresolved(netns, servers, name, addresses) if netns else f"{source} is not running"
        return Resolved(network, source, target, name, not reason, reason)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda it: resolved(*it), asked))


def _unresolved(netns: Path, servers: tuple[str, ...], name: str, addresses: tuple[str, ...]) -> str:
    """Return why the first server that answers does not resolve a name to these addresses; empty if it does."""
    for version in sorted({ip_address(it).version for it in addresses}):
        expected = {it for it in addresses if ip_address(it).version == version}
        for server in servers:
            if said := ask(netns, server, name, version):
                break
        else:
            return f"no answer from {' or '.join(servers)}"
        if said.addresses != expected:
            told = ", ".join(sorted(said.addresses)) or f"{said.code} without an address of IPv{version}"
            return f"{server} answers {told}, not {', '.join(sorted(expected))}"
    return ""


def _namespaces(state: State, pairs: list[tuple[str, str, str]]) -> dict[str, Path]:
    """Return the network namespaces of the running containers in pairs."""
    found = {}
    for name in {name for _, one, two in pairs for name in (one, two)}:
        try:
            found[name] = Container.of(state, name).netns
        except NetplugError:
            continue
    return found


def missing(state: State) -> list[Reachability] | list[Resolved]:
    """Return the paths that do not work; if all work, the names that do not resolve."""
    return [it for it in reach(state) if not it.answers] or [it for it in names(state) if not it.resolves]


def status(state: State) -> dict[str, Any]:
    """Return the state of a lab, in the format of `netplug lab status --json`."""
    lab = state.lab
    return {
        "lab": lab.name,
        "store": lab.store,
        "hosts": [_host(state, name) for name in (*lab.hosts, *([ETCD] if lab.store == ETCD else []))],
        "networks": [
            {"name": name, "mode": net.mode, "hosts": list(lab.nodes(name))} for name, net in lab.networks.items()
        ],
        "containers": [
            {
                "name": name,
                "host": part.host,
                "runtime": part.runtime.value,
                "addresses": {net: list(found) for net, found in state.containers.get(name, {}).items()},
            }
            for name, part in lab.containers.items()
        ],
        "faults": list(state.faults),
        "reach": [asdict(it) for it in reach(state)],
        "names": [asdict(it) for it in names(state)],
    }


def _host(state: State, name: str) -> dict[str, Any]:
    node, member = state.node(name), state.members[name]
    return {
        "name": name,
        "addresses": list(member.addresses),
        "up": node.alive,
        "processes": {process: node.lives(pid) for process, pid in member.processes.items()},
        "differences": _differences(state, name),
    }


def _differences(state: State, name: str) -> int | None:
    """Return the number of differences that `netplug diff` finds; None if the daemon does not answer."""
    node, pid = state.node(name), state.members[name].processes.get("netplug", 0)
    if node.state(pid) in {"", "T"}:
        return None
    done = node.try_run("netplug", "diff", "--json")
    return len(json.loads(done.stdout)) if done.returncode in {0, 1} and done.stdout else None


def graph(lab: Lab, state: State | None = None) -> str:
    """Return a lab as a Mermaid flowchart, with addresses if it is up."""
    lines = ["flowchart TB", f'  switch{{{{"switch<br/>{lab.underlay.ipv4}<br/>{lab.underlay.ipv6}"}}}}']
    containers = state.containers if state else {}
    for name, host in lab.hosts.items():
        own = ", ".join(state.members[name].addresses) if state and name in state.members else ""
        lines += [f'  subgraph host-{name}["{_label("host " + name, own)}"]']
        for key, part in lab.containers.items():
            if part.host == name:
                found = [address for net in containers.get(key, {}).values() for address in net]
                lines.append(f'    c-{key}["{_label(key, part.runtime.value, *found)}"]')
        lines += [f'    n-{net}-{name}(["{net}"])' for net, it in lab.networks.items() if _here(lab, net, name)]
        link = [f"mtu {lab.mtu(name)}", *([host.rate] if host.rate else [])]
        lines += ["  end", f'  host-{name} ---|"{", ".join(link)}"| switch']
    if lab.store == ETCD:
        lines += ["  etcd[(etcd)] --- switch"]
    lines += [f'  n-{net}(["{net}<br/>overlay"])' for net, it in lab.networks.items() if it.spans]
    for key, part in lab.containers.items():
        for net in part.networks:
            end = f"n-{net}" if lab.networks[net].spans else f"n-{net}-{part.host}"
            lines.append(f"  c-{key} --- {end}")
    return "\n".join(lines)


def _here(lab: Lab, net: str, host: str) -> bool:
    return not lab.networks[net].spans and host in lab.nodes(net)


def _label(*lines: str) -> str:
    return "<br/>".join(line for line in lines if line)
