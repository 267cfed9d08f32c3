"""Containers of a lab: of Docker, of podman, as a CNI runtime starts them, and bare namespaces."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netplug.errors import NetplugError
from netplug.lab import podman
from netplug.lab.file import ContainerPart, Lab, NetworkPart, Runtime
from netplug.lab.image import IMAGE
from netplug.lab.node import Node
from netplug.lab.podman import CNI_BIN
from netplug.lab.state import State

DOCKERS_RESOLVER = "127.0.0.11"
_ENGINES = frozenset({Runtime.DOCKER, Runtime.PODMAN})
"""Runtimes whose containers have a process of their own; the values are the names of their commands."""
_ENDLESS = ("sleep", "2147483647")
_PUBLISHED = re.compile(r"(?:(\d+):)?(\d+)(?:/(tcp|udp|sctp))?")


def create_network(lab: Lab, name: str, host: Node, *, shared: bool) -> None:
    """Create a network on a host. `shared`: on all hosts of the cluster."""
    net = lab.networks[name]
    options = [f"mode={net.mode}", *(f"{key}={value}" for key, value in net.options.items())]
    common = [f"--subnet={subnet}" for subnet in net.subnets]
    common += ["--internal"] * net.internal + ["--ipv6"] * net.ipv6
    if shared:
        common.append("--cluster")
    host.run("netplug", "network", "create", name, *common, *(word for it in options for word in ("-o", it)))


def create_docker_network(lab: Lab, name: str, host: Node) -> None:
    """Create a network by Docker; Docker joins an existing network if it spans hosts."""
    net = lab.networks[name]
    argv = ["docker", "network", "create", "-d", "pynet", "-o", f"mode={net.mode}", "-o", f"name={name}"]
    if net.spans:
        argv += ["--ipam-driver", "pynet", "--ipam-opt", f"name={name}"]
    argv += [word for key, value in net.options.items() for word in ("-o", f"{key}={value}")]
    argv += [f"--subnet={subnet}" for subnet in net.subnets] + ["--internal"] * net.internal
    host.run(*argv, *["--ipv6"] * _both(net), name)


def _both(net: NetworkPart) -> bool:
    return net.ipv6 or any(subnet.version == 6 for subnet in net.subnets)


@dataclass(frozen=True, slots=True)
class Attached:
    """A container's addresses and name servers in a network, the preferred server first."""

    addresses: tuple[str, ...]
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a lab that is up."""

    name: str
    part: ContainerPart
    node: Node

    @classmethod
    def of(cls, state: State, name: str) -> "Container":
        part = state.lab.containers[name]
        return cls(name, part, state.node(part.host))

    @property
    def netns(self) -> Path:
        """The container's network namespace, as a path outside of its host.

        Raises:
            NetplugError: the container is not running.
        """
        if self.part.runtime in _ENGINES:
            pid = self.node.run(self.part.runtime, "inspect", "-f", "{{.State.Pid}}", self.name)
            if pid == "0":
                raise NetplugError("unavailable", f"container {self.name!r} is not running")
            return self.node.path(f"/proc/{pid}/ns/net")
        return self.node.path(f"/run/netns/{self.name}")

    def command(self, argv: tuple[str, ...], *, tty: bool = False) -> list[str]:
        """Return the command line by which its host runs a command in the container."""
        if self.part.runtime in _ENGINES:
            return [self.part.runtime, "exec", *(["-it"] if tty else ["-i"]), self.name, *argv]
        return ["nsenter", f"--net=/run/netns/{self.name}", "--", *argv]

    def start(self) -> dict[str, Attached]:
        """Start the container; return its addresses and name servers, by network."""
        if self.part.runtime == Runtime.DOCKER:
            return self._start_by_docker()
        if self.part.runtime == Runtime.PODMAN:
            return self._start_by_podman()
        self.node.script(f"ip netns add {self.name}", f"ip -n {self.name} link set lo up")
        attach = self._add_by_cni if self.part.runtime == Runtime.CNI else self._attach
        found = {network: attach(network, f"eth{number}") for number, network in enumerate(self.part.networks)}
        if self.part.command:
            self.node.spawn(self.command(self.part.command), f"{self.name}.log")
        return found

    def _start_by_docker(self) -> dict[str, Attached]:
        first, *more = self.part.networks
        self._run_by_engine("--init", f"--network={first}")
        for network in more:
            self.node.run("docker", "network", "connect", network, self.name)
        networks = json.loads(self.node.run("docker", "inspect", "-f", "{{json .NetworkSettings.Networks}}", self.name))
        return {
            name: Attached(tuple(it for it in (net["IPAddress"], net["GlobalIPv6Address"]) if it), (DOCKERS_RESOLVER,))
            for name, net in networks.items()
        }

    def _run_by_engine(self, *options: str) -> str:
        """Start the container and return its id; both engines have the same options."""
        more = [f"--{'ip6' if ':' in ip else 'ip'}={ip}" for ip in self.part.ip]
        more += [f"--publish={port}" for port in self.part.publish]
        argv = [self.part.runtime, "run", "-d", f"--name={self.name}", f"--hostname={self.name}", *options, *more]
        return self.node.run(*argv, IMAGE, *(self.part.command or _ENDLESS))

    def _start_by_podman(self) -> dict[str, Attached]:
        # Without interface names, podman numbers the networks in any order.
        networks = [f"--network={name}:interface_name=eth{it}" for it, name in enumerate(self.part.networks)]
        # Docker's containers may ping by default; podman's need this capability.
        ident = self._run_by_engine(f"--cgroup-parent=/{self.node.group}", "--cap-add=NET_RAW", *networks)
        if podman.by_netavark(self.node):
            return {network: Attached(*found) for network, found in podman.told(self.node, self.name).items()}
        found = {}
        for number, network in enumerate(self.part.networks):
            # The result of each network's plugin, as cached by libcni.
            kept = self.node.path(f"/var/lib/cni/results/{network}-{ident}-eth{number}")
            found[network] = _told(json.loads(kept.read_text())["result"])
        return found

    def _attach(self, network: str, ifname: str) -> Attached:
        options = [f"--ip={ip}" for ip in self.part.ip]
        # Only the first network publishes ports, as with Docker.
        options += [f"--publish={port}" for port in self.part.publish] if network == self.part.networks[0] else []
        argv = ["netplug", "attach", network, f"--netns={self.name}", f"--ifname={ifname}", f"--name={self.name}"]
        told = json.loads(self.node.run(*argv, *options))
        addresses = tuple(address.partition("/")[0] for address in told["addresses"])
        return Attached(addresses, tuple(told["dns"]["nameservers"]))

    def _add_by_cni(self, network: str, ifname: str) -> Attached:
        self.node.run("netplug", "cni", "install", f"--bin-dir={CNI_BIN}")
        listed = json.loads(self.node.run("netplug", "cni", "config", network))
        runtime = {"portMappings": [self._mapping(port) for port in self.part.publish], "ips": list(self.part.ip)}
        config = listed["plugins"][0] | {"cniVersion": listed["cniVersion"], "name": listed["name"]}
        config["runtimeConfig"] = {key: value for key, value in runtime.items() if value}
        env = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": self.name,
            "CNI_NETNS": f"/run/netns/{self.name}",
            "CNI_IFNAME": ifname,
            "CNI_ARGS": f"K8S_POD_NAME={self.name}",
            "CNI_PATH": CNI_BIN,
        }
        told = self.node.try_run(f"{CNI_BIN}/pynet", stdin=json.dumps(config).encode(), env=env)
        answer = json.loads(told.stdout or b"{}")
        if told.returncode:
            raise NetplugError("unavailable", f"container {self.name!r}: {answer.get('msg', 'the CNI plugin failed')}")
        return _told(answer)

    def _mapping(self, published: str) -> dict[str, object]:
        found = _PUBLISHED.fullmatch(published)
        if not found or not found[1]:
            words = (
                f"container {self.name!r}: with runtime cni, ports must be HOST:CONTAINER[/PROTO], not {published!r}"
            )
            raise NetplugError("invalid", words)
        return {"hostPort": int(found[1]), "containerPort": int(found[2]), "protocol": found[3] or "tcp"}


def _told(result: dict[str, Any]) -> Attached:
    """Return the addresses and name servers in the result of a CNI plugin."""
    addresses = tuple(ip["address"].partition("/")[0] for ip in result["ips"])
    return Attached(addresses, tuple(result.get("dns", {}).get("nameservers", ())))
