"""Where the packets of an endpoint are: for `netplug capture`, which reads those of this host by itself.

What is on another host is captured there, by its daemon: the question "capture" starts it, fetches packets, ends it.
"""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from netplug.cluster.records import EndpointAdvert
from netplug.drivers.codec import JsonObject
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.errors import NetplugError
from netplug.kernel.probes.capture import Place
from netplug.kernel.probes.captures import Captures

if TYPE_CHECKING:
    from netplug.cluster.cluster import Cluster

KIND = "capture"
_DEADLINE_S = 10.0
_STOP_S = 2.0
"""To end a capture there; it also ends by itself."""
_MOST_INSTRUCTIONS = 4096
"""BPF_MAXINSNS: the kernel takes no longer filter."""


class EndOut(BaseModel):
    """An endpoint. `here`: on this host; else its links are not known. `interface`: in the sandbox, if we named it."""

    id: str
    network: str
    name: str
    container: str
    host: str
    here: bool
    addresses: list[str]
    mac: str
    sandbox: str = ""
    sandbox_id: str = ""
    interface: str = ""
    host_link: str = ""

    @classmethod
    def of(cls, record: EndpointRecord, network: str, host: str) -> Self:
        place = place_of(record)
        return cls(
            id=record.endpoint.id,
            network=network,
            name=record.name,
            container=record.container,
            host=host,
            here=True,
            addresses=[str(it.ip) for it in record.endpoint.addresses],
            mac=place.mac,
            sandbox=place.netns,
            sandbox_id=place.netns_id,
            interface=place.link,
            host_link=place.host_link,
        )

    @classmethod
    def of_other(cls, ident: str, told: EndpointAdvert, network: str, host: str) -> Self:
        addresses = [str(it) for it in told.addresses]
        return cls(
            id=ident,
            network=network,
            name=told.name,
            container=told.container,
            host=host,
            here=False,
            addresses=addresses,
            mac=told.mac,
        )


class EndsOut(BaseModel):
    """`ends`: the endpoints that are meant. `others`: all others of their networks."""

    host: str
    ends: list[EndOut]
    others: list[EndOut]


class StartIn(BaseModel):
    """`code`: a classic BPF program."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    do: Literal["start"]
    endpoint: str
    network: str
    code: Annotated[list[tuple[int, int, int, int]], Field(max_length=_MOST_INSTRUCTIONS)]


class GoOnIn(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    do: Literal["fetch", "stop"]
    capture: str


class AskIn(BaseModel):
    """A question to another host."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    host: str
    question: Annotated[StartIn | GoOnIn, Field(discriminator="do")]


def place_of(record: EndpointRecord) -> Place:
    """Return where the link of an endpoint is."""
    link = record.host_link.name if record.host_link and record.linked else ""
    return Place(record.sandbox, record.sandbox_id, record.ifname, record.endpoint.mac, link)


class Ends:
    """The routes below /v1/capture, and the answers to other hosts. `cluster`: None without a shared store."""

    def __init__(self, engine: Engine, host: str, cluster: "Cluster | None") -> None:
        self._engine = engine
        self._host = host
        self._cluster = cluster
        self._captures = Captures()
        if cluster:
            cluster.questions.answer(KIND, self._answer)

    @property
    def routes(self) -> tuple[tuple[str, str, Callable[..., Coroutine[Any, Any, Any]], int], ...]:
        """Routes for the REST API."""
        return (("GET", "/capture", self.find, 200), ("POST", "/capture/ask", self.ask, 200))

    async def find(self, endpoint: str, others: bool = False) -> EndsOut:
        """GET /v1/capture: find endpoints as users call them, on all hosts."""
        registry = self._engine.registry
        try:
            here = registry.endpoints_called(endpoint)
            found = [EndOut.of(it, registry.network(it.endpoint.network).network.name, self._host) for it in here]
        except NetplugError as exc:
            found = self._elsewhere(endpoint) if exc.kind == "not_found" else []
            if not found:
                raise
        names = {it.network for it in found}
        ids = {it.id for it in found}
        networks = [it for it in registry.networks() if others and it.network.name in names]
        rest = [it for network in networks for it in self._all_of(network) if it.id not in ids]
        return EndsOut(host=self._host, ends=found, others=rest)

    def _all_of(self, record: NetworkRecord) -> list[EndOut]:
        name = record.network.name
        here = self._engine.registry.endpoints(record.network.id)
        return [*(EndOut.of(it, name, self._host) for it in here), *self._others_of(record)]

    def _others_of(self, record: NetworkRecord) -> list[EndOut]:
        if self._cluster is None:
            return []
        found = self._cluster.remote_endpoints(record)
        return [EndOut.of_other(ident, told, record.network.name, host) for host, ident, told in found]

    def _elsewhere(self, ref: str) -> list[EndOut]:
        network, slash, name = ref.rpartition("/")
        registry = self._engine.registry
        records = [registry.network(network)] if slash else registry.networks()
        found = [it for record in records for it in self._others_of(record)]
        exact = [it for it in found if name and name in {it.id, it.name, it.container}]
        return exact or [it for it in found if name and (it.id.startswith(name) or it.container.startswith(name))]

    async def ask(self, body: AskIn) -> dict[str, Any]:
        """POST /v1/capture/ask: have another host capture. Answers what its daemon answers."""
        if self._cluster is None:
            raise NetplugError("invalid", "this daemon is not part of a cluster")
        question: JsonObject = body.question.model_dump(mode="json")
        deadline_s = _STOP_S if body.question.do == "stop" else _DEADLINE_S
        return dict(await self._cluster.questions.ask(body.host, KIND, question, deadline_s))

    async def _answer(self, question: JsonObject) -> JsonObject:
        """Answer another host."""
        try:
            asked = AskIn.model_validate({"host": self._host, "question": question}).question
        except ValueError as exc:
            raise NetplugError("invalid", "the capture that is asked for cannot be read") from exc
        if isinstance(asked, StartIn):
            return await self._captures.start(self._place(asked), asked.code)
        if asked.do == "fetch":
            return await self._captures.fetch(asked.capture)
        await self._captures.stop(asked.capture)
        return {}

    def _place(self, asked: StartIn) -> Place:
        network = self._engine.registry.network(asked.network).network.id
        record = self._engine.registry.find(network, asked.endpoint)
        if record is None:
            raise NetplugError("not_found", f"host {self._host} has no endpoint {asked.endpoint[:12]!r}")
        return place_of(record)
