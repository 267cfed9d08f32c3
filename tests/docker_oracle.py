"""What must be there after requests of dockerd, by the requests alone. For `test_docker_replay.py`."""

import json
import re
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

GENERIC = "com.docker.network.generic"
PORTMAP = "com.docker.network.portmap"
OUR_SPACES = {"pyLocal": "netplug-local", "pyGlobal": "netplug-global"}
NEED_NO_BODY = {"Activate", "GetCapabilities", "GetDefaultAddressSpaces"}

Ports = frozenset[tuple[int, int, str, int, int]]


@dataclass
class Net:
    subnets: list[tuple[str, str]]
    internal: bool
    mtu: int


@dataclass
class End:
    network: str
    addresses: list[str]
    mac: str
    ports: Ports
    name: str = ""
    linked: bool = True
    published: Ports = frozenset()


@dataclass
class Oracle:
    """What must be there, by the requests alone."""

    nets: dict[str, Net] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)

    def expected(self, method: str, body: Any) -> int:
        """Return the status that the request must get."""
        if body is None:
            return 200 if method in NEED_NO_BODY else 400
        if method in {"AllocateNetwork", "FreeNetwork"}:
            return 500
        if method == "CreateEndpoint":
            return 200 if body["NetworkID"] in self.nets else 500
        if method in {"Join", "ProgramExternalConnectivity", "EndpointOperInfo"}:
            return 200 if body["EndpointID"] in self.ends else 500
        return 200

    def apply(self, method: str, body: Any) -> None:
        """Take note of a request that succeeded."""
        action = getattr(self, "_" + re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower(), None)
        if action is not None:
            action(body)

    def _create_network(self, body: Any) -> None:
        data = [item for item in [*body["IPv4Data"], *body["IPv6Data"]] if item["AddressSpace"] != "null"]
        options = body["Options"] or {}
        generic = options.get(GENERIC) or {}
        self.nets[body["NetworkID"]] = Net(
            [(item["Pool"], item.get("Gateway", "")) for item in data],
            bool(options.get("com.docker.network.internal")),
            int(generic.get("com.docker.network.driver.mtu", 1500)),
        )

    def _delete_network(self, body: Any) -> None:
        self.nets.pop(body["NetworkID"], None)
        self.ends = {ident: end for ident, end in self.ends.items() if end.network != body["NetworkID"]}

    def _create_endpoint(self, body: Any) -> None:
        asked = body["Interface"]
        addresses = [asked[key] for key in ("Address", "AddressIPv6") if asked[key]]
        for ident, other in list(self.ends.items()):
            if other.network == body["NetworkID"] and set(other.addresses) & set(addresses):
                del self.ends[ident]
        ports = _ports(body["Options"].get(PORTMAP))
        self.ends[body["EndpointID"]] = End(body["NetworkID"], addresses, asked["MacAddress"], ports)

    def _join(self, body: Any) -> None:
        self.ends[body["EndpointID"]].linked = True

    def _program_external_connectivity(self, body: Any) -> None:
        end = self.ends[body["EndpointID"]]
        said = (body["Options"] or {}).get(PORTMAP)
        if said is not None:
            end.ports = _ports(said)
        end.published = frozenset() if self.nets[end.network].internal else end.ports

    def _revoke_external_connectivity(self, body: Any) -> None:
        if end := self.ends.get(body["EndpointID"]):
            end.published = frozenset()

    def _leave(self, body: Any) -> None:
        if end := self.ends.get(body["EndpointID"]):
            end.published, end.linked = frozenset(), False

    def _delete_endpoint(self, body: Any) -> None:
        self.ends.pop(body["EndpointID"], None)


def _ports(items: Any) -> Ports:
    return frozenset((p["Proto"], p["Port"], p["HostIP"], p["HostPort"], p["HostPortEnd"]) for p in items or ())


class Ipam:
    """Rewrites what follows from the stub's IPAM answers into what follows from ours, and judges the latter."""

    def __init__(self, *, sticky: bool = False) -> None:
        self.returned = 0
        self._sticky = sticky
        self._kept: dict[tuple[str, str], str] = {}
        self._pools: dict[str, str] = {}
        self._cidrs: dict[str, str] = {}
        self._addresses: dict[tuple[str, str], str] = {}
        self._stub_pool_of: dict[str, str] = {}
        self.held: set[tuple[str, str]] = set()
        self.names: dict[str, str] = {}
        self.replaying = False

    def rewrite(self, method: str, body: Any) -> Any:
        body = json.loads(json.dumps(body))
        if method == "Activate":
            self.replaying = True
        if not body:
            return body
        if "AddressSpace" in body:
            body["AddressSpace"] = OUR_SPACES[body["AddressSpace"]]
        if "PoolID" in body:
            stub = body["PoolID"]
            body["PoolID"] = self._pools[stub]
            if body.get("Address"):
                body["Address"] = self._addresses.get((_cidr(stub), body["Address"]), body["Address"])
        if method == "CreateNetwork":
            for item in [*body["IPv4Data"], *body["IPv6Data"]]:
                self._rewrite_subnet(body["NetworkID"], item)
            spaces = {item["AddressSpace"] for item in [*body["IPv4Data"], *body["IPv6Data"]]}
            if self._sticky and spaces <= set(OUR_SPACES.values()):
                body["Options"][GENERIC] = {**(body["Options"].get(GENERIC) or {}), "sticky": "true"}
        if method == "CreateEndpoint" and (stub := self._stub_pool_of.get(body["NetworkID"])):
            body["Interface"]["Address"] = self._interface(stub, body["Interface"]["Address"])
        return body

    def _rewrite_subnet(self, network: str, item: Any) -> None:
        if item["AddressSpace"] in OUR_SPACES:
            stub = item["Pool"]
            self._stub_pool_of[network] = stub
            item["AddressSpace"] = OUR_SPACES[item["AddressSpace"]]
            item["Gateway"] = self._interface(stub, item["Gateway"])
            item["Pool"] = self._cidrs[stub]

    def _interface(self, stub: str, text: str) -> str:
        address, _, length = text.partition("/")
        return f"{self._addresses.get((stub, address), address)}/{length}"

    def judge(self, method: str, recorded: Any, sent: Any, answer: Any, said: Any) -> None:
        """Check an answer. `said`: what the stub answered, None where it refused."""
        if method == "RequestPool":
            assert ip_network(answer["Pool"])
            assert sent["Pool"] in {"", answer["Pool"]}
            before = self._pools.setdefault(said["PoolID"], answer["PoolID"])
            assert before == answer["PoolID"], "the same pool has the same id after a restart"
            self._cidrs[said["Pool"]] = answer["Pool"]
        elif method == "RequestAddress":
            address = answer["Address"].split("/")[0]
            assert sent["Address"] in {"", address}
            key = (sent["PoolID"], address)
            assert key not in self.held or (self.replaying and sent["Address"])
            self.held.add(key)
            name = (sent["Options"] or {}).get("com.docker.network.endpoint.name", self.names.get(address, ""))
            self.names[address] = name
            if before := self._kept.pop((sent["PoolID"], name), ""):
                assert address == before, f"{name} had {before}"
                self.returned += 1
            if said is not None:
                self._addresses[_cidr(recorded["PoolID"]), said["Address"].split("/")[0]] = address
        elif method == "ReleaseAddress":
            self.held.discard((sent["PoolID"], sent["Address"]))
            name = self.names.pop(sent["Address"], "")
            if self._sticky and name:
                self._kept[sent["PoolID"], name] = sent["Address"]
        elif method == "ReleasePool":
            self._kept = {key: address for key, address in self._kept.items() if key[0] != sent["PoolID"]}


def _cidr(stub_pool: str) -> str:
    return stub_pool.partition(",")[0]
