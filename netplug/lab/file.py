"""The description of a lab in its YAML file; the only importer of yaml.

The file format is stable, see docs/lab.md. An invalid file is refused with one line that names the place in it.
"""

import re
from difflib import get_close_matches
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from netplug.errors import NetplugError
from netplug.errors.json import malformed
from netplug.errors.printable import printable
from netplug.errors.validation import wrong

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_RATE = re.compile(r"[0-9]+(\.[0-9]+)?[kmgt]?bit")
ETCD = "etcd"
"""Name of etcd's node, reserved among the hosts."""
_LAST = 250
"""The most hosts in an underlay of /24, besides etcd."""


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a name: 1 to 32 characters a-z, 0-9 and '-'")
    return text


def _host(text: str) -> str:
    if text == ETCD:
        raise ValueError(f"{text!r} is reserved for the host of the store")
    return _name(text)


def _rate(text: str) -> str:
    if not _RATE.fullmatch(text):
        raise ValueError(f"{text!r} is not a rate such as 100mbit")
    return text


def _text(value: object) -> str:
    """Return the text of a value that YAML reads as a number or a boolean."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError("is not a text, number, true or false")


def _subnet(value: object) -> IPv4Network | IPv6Network:
    return ip_network(str(value))


def _written(value: object) -> object:
    """Refuse numbers and booleans, which `ipaddress` takes for addresses."""
    if isinstance(value, int):
        raise ValueError(f"{value!r} is not a subnet")
    return value


Name = Annotated[str, AfterValidator(_name)]
HostName = Annotated[str, AfterValidator(_host)]
Rate = Annotated[str, AfterValidator(_rate)]
Text = Annotated[str, BeforeValidator(_text)]
Mtu = Annotated[int, Field(ge=576, le=65535)]
Subnet = Annotated[IPv4Network | IPv6Network, BeforeValidator(_subnet)]


class Runtime(StrEnum):
    """What starts a container. `NETNS`: no runtime; a bare namespace, attached by `netplug attach`."""

    DOCKER = "docker"
    PODMAN = "podman"
    CNI = "cni"
    NETNS = "netns"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Underlay(_Part):
    """The switch and its subnets. `family`: IP version of the tunnels; `mtu`: of each link, in bytes."""

    ipv4: Annotated[IPv4Network, BeforeValidator(_written)] = IPv4Network("198.18.0.0/24")
    """Reserved for benchmarks of devices (RFC 2544)."""
    ipv6: Annotated[IPv6Network, BeforeValidator(_written)] = IPv6Network("fd00:1ab::/64")
    family: Literal[4, 6] = 4
    mtu: Mtu = 1500

    @model_validator(mode="after")
    def _wide(self) -> Self:
        if self.ipv4.prefixlen > 24 or self.ipv6.prefixlen > 120:
            raise ValueError("an underlay must be a /24 or larger in IPv4, a /120 or larger in IPv6")
        return self


class HostPart(_Part):
    """A host. `mtu`, `rate`: of its link (default: the underlay's MTU, no limit); `serve`: flags of its daemon."""

    mtu: Mtu | None = None
    rate: Rate | None = None
    docker: bool = False
    serve: tuple[Text, ...] = ()


class NetworkPart(_Part):
    """A network. `hosts`: hosts that have it (default: all). `options`: as with `-o`."""

    hosts: tuple[Name, ...] | None = None
    mode: Name = "bridge"
    subnets: tuple[Subnet, ...] = ()
    ipv6: bool = False
    internal: bool = False
    options: dict[str, Text] = Field(default_factory=dict)

    @property
    def spans(self) -> bool:
        """Whether its containers reach each other across hosts."""
        return self.mode == "overlay"

    @property
    def talks(self) -> bool:
        """Whether its containers may communicate with each other."""
        return self.options.get("icc", "true") == "true"

    @property
    def named(self) -> bool:
        """Whether its containers' names are served; YAML reads a bare `off` as false."""
        return self.options.get("dns", "on").lower() not in {"off", "false"}


class ContainerPart(_Part):
    """A container. `command` runs in it; without one, engines run a sleep, other containers nothing."""

    host: Name
    runtime: Runtime = Runtime.NETNS
    networks: tuple[Name, ...] = Field(min_length=1)
    ip: tuple[Text, ...] = ()
    publish: tuple[Text, ...] = ()
    command: tuple[Text, ...] = ()


class Lab(_Part):
    """The whole file."""

    name: Name
    underlay: Underlay = Underlay()
    store: Literal["sqlite", "etcd"] = "sqlite"
    hosts: dict[HostName, HostPart] = Field(min_length=1, max_length=_LAST)
    networks: dict[Name, NetworkPart] = Field(default_factory=dict)
    containers: dict[Name, ContainerPart] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name, net in self.networks.items():
            for host in net.hosts or ():
                _known("host", host, self.hosts, f"networks.{name}.hosts")
            if net.spans and self.store != ETCD:
                raise ValueError(f"networks.{name}: mode overlay needs 'store: etcd'")
        for name, container in self.containers.items():
            _known("host", container.host, self.hosts, f"containers.{name}.host")
            if container.runtime == Runtime.DOCKER and not self.hosts[container.host].docker:
                raise ValueError(f"containers.{name}: host {container.host!r} has no dockerd ('docker: true')")
            for network in container.networks:
                _known("network", network, self.networks, f"containers.{name}.networks")
                if container.host not in self.nodes(network):
                    raise ValueError(f"containers.{name}: network {network!r} is not on host {container.host!r}")
            if len(container.networks) > 1 and (container.ip or container.runtime == Runtime.CNI):
                raise ValueError(f"containers.{name}: with 'ip' or runtime cni there can be only one network")
        return self

    def nodes(self, network: str) -> tuple[str, ...]:
        """Return the hosts of a network."""
        chosen = self.networks[network].hosts
        return tuple(self.hosts) if chosen is None else chosen

    def by_docker(self, network: str, host: str) -> bool:
        """Whether Docker creates a network on a host, because it runs a container of it there."""
        return any(
            it.host == host and network in it.networks and it.runtime == Runtime.DOCKER
            for it in self.containers.values()
        )

    def of_podman(self, host: str) -> list[str]:
        """Return the networks of podman's containers on a host, the first container's first."""
        parts = [it for it in self.containers.values() if it.host == host and it.runtime == Runtime.PODMAN]
        return list(dict.fromkeys(network for part in parts for network in part.networks))

    def mtu(self, host: str) -> int:
        """Return the MTU of a host's link."""
        return self.hosts[host].mtu or self.underlay.mtu

    def pairs(self) -> list[tuple[str, str, str]]:
        """Return the pairs of containers that must reach each other, by network; each pair once."""
        return [it for it in self._together() if self.networks[it[0]].talks]

    def named_pairs(self) -> list[tuple[str, str, str]]:
        """Return the pairs of containers that must resolve each other's names, by network; each pair once."""
        return [it for it in self._together() if self.networks[it[0]].named]

    def _together(self) -> list[tuple[str, str, str]]:
        found = []
        for name, net in self.networks.items():
            members = [(key, it.host) for key, it in self.containers.items() if name in it.networks]
            found += [
                (name, one, two)
                for index, (one, here) in enumerate(members)
                for two, there in members[index + 1 :]
                if net.spans or here == there
            ]
        return found


def _known(kind: str, name: str, among: dict[str, Any], where: str) -> None:
    if name not in among:
        raise ValueError(f"{where}: {kind} {name!r} does not exist; there are {', '.join(among) or 'none'}")


def _unknown_key(loc: tuple[int | str, ...]) -> str:
    """Return the error for an unknown key, with the valid keys; `loc` is pydantic's."""
    parts: dict[str, type[_Part]] = {
        "underlay": Underlay,
        "hosts": HostPart,
        "networks": NetworkPart,
        "containers": ContainerPart,
    }
    known = list((Lab if len(loc) == 1 else parts[str(loc[0])]).model_fields)
    near = get_close_matches(str(loc[-1]), known, n=1)
    return f"unknown key, did you mean {near[0]!r}?" if near else f"unknown key; valid keys are {', '.join(known)}"


def load(path: Path) -> Lab:
    """Load a lab's file.

    Raises:
        NetplugError: "invalid"; the message names the file and the place in it.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as exc:
        raise NetplugError("invalid", f"{path} cannot be read: {(exc.strerror or str(exc)).lower()}") from None
    except (UnicodeError, RecursionError) as exc:
        raise NetplugError("invalid", f"{path} is not YAML: {malformed(exc)}") from None
    except (yaml.YAMLError, ValueError) as exc:  # ValueError: a date or number that is none
        raise NetplugError("invalid", f"{path} is not YAML: {printable(' '.join(str(exc).split()))}") from None
    if not isinstance(data, dict):
        raise NetplugError("invalid", f"{path} is not a mapping with 'name', 'hosts' and so on")
    try:
        return Lab.model_validate({"name": path.stem} | data)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        # A mistyped key also causes an error for the missing key.
        error = next((it for it in errors if it["type"] == "extra_forbidden"), errors[0])
        where = ".".join(str(part) for part in error["loc"] if part != "[key]")
        reason = wrong(dict(error))
        if error["type"] == "extra_forbidden":
            reason = _unknown_key(error["loc"])
        raise NetplugError("invalid", printable(f"{path}: {where[:200] + ': ' if where else ''}{reason}")) from None
