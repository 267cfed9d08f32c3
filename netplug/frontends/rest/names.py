"""The REST API of the name server: lists names, counts queries, answers a query as a container would get it."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Protocol

import dnslib
from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from netplug.dns.server import Counts
from netplug.dns.zone import Entry
from netplug.engine import Engine
from netplug.engine.host_link import PORT
from netplug.errors import NetplugError

PATIENCE_S = 6.0
"""Longer than the name server itself waits for an upstream."""


EXTENDED_ERROR = 15
WORDS = {
    "NOERROR": "the name is there, but has no records of this type",
    "NXDOMAIN": "there is no such name",
    "SERVFAIL": "those who are asked for this name cannot say",
    "REFUSED": "nobody is asked for this name from here",
    "NOTIMP": "questions of this kind are not answered",
    "FORMERR": "such a question makes no sense",
}
"""What codes mean for who asks, where nobody gave a reason."""


class Names(Protocol):
    """The name server."""

    def entries(self, network_id: str) -> list[Entry]: ...

    @property
    def counts(self) -> Mapping[str, Counts]: ...

    async def ask(self, networks: Iterable[str], message: bytes) -> bytes | None: ...


class NameOut(BaseModel):
    """`names`: the first one is that of PTR records. `services`: such as ``http/tcp:80``."""

    network: str
    names: list[str]
    addresses: list[str]
    services: list[str]
    healthy: bool
    endpoint: str

    @classmethod
    def of(cls, entry: Entry, network: str) -> "NameOut":
        return cls(
            network=network,
            names=list(filter(None, (*entry.names, entry.short))),
            addresses=list(map(str, entry.addresses)),
            services=[f"{one.name}/{one.proto}:{one.port}" for one in entry.services],
            healthy=entry.healthy,
            endpoint=entry.id,
        )


class NamesOut(BaseModel):
    names: list[NameOut]


class StatsOut(BaseModel):
    """Counts of queries from a network since the daemon's start.

    `answers`: by code (NOERROR, NXDOMAIN, …), those that are not 0. `outward`: queries for external names, sent
    to an upstream or answered from the cache. `strangers`: from addresses that no endpoint of the network has.
    `dropped`: without an answer, or whose answer could not be sent. `faults`: internal errors.
    """

    network: str
    answers: dict[str, int]
    outward: int
    strangers: int
    dropped: int
    faults: int

    @classmethod
    def of(cls, counts: Counts, network: str) -> "StatsOut":
        return cls(
            network=network,
            answers={str(dnslib.RCODE.get(code)): number for code, number in enumerate(counts.codes) if number},
            outward=counts.outward,
            strangers=counts.strangers,
            dropped=counts.dropped,
            faults=counts.faults,
        )


class AllStatsOut(BaseModel):
    networks: list[StatsOut]


class QueryIn(BaseModel):
    """`name`: may be an address, then the query is for PTR. `networks`: those of the container that asks."""

    name: str = Field(min_length=1, max_length=1024)
    type: str = Field(default="A", max_length=16)
    networks: list[str] = Field(min_length=1, max_length=64)


class RecordOut(BaseModel):
    name: str
    type: str
    ttl: int
    data: str


class AnswerOut(BaseModel):
    """`code`: NOERROR, NXDOMAIN, … `why`: the reason, if there are no answers."""

    code: str
    answers: list[RecordOut]
    why: str = ""

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]  # noqa: ANN202
        # pydantic would take the type of what is returned for the schema of the answer.
        data: dict[str, object] = handler(self)
        if self.answers:
            del data["why"]
        return data


class HostNamesOut(BaseModel):
    """How the host itself asks for names. The other fields are empty if it does not.

    `way`: "systemd-resolved", "resolvconf", "resolv.conf" or "other". `server`: whom it asks, with the port unless it
    is 53. `example`: a name that it can resolve. `hint`: what the user has to do, if anything.
    """

    on: bool
    way: str = ""
    domain: str = ""
    server: str = ""
    example: str = ""
    hint: str = ""


class NamesApi:
    """The methods. `names` None: no name server runs. `domain`: of all names."""

    def __init__(self, engine: Engine, names: Names | None, domain: str = "") -> None:
        self._engine = engine
        self._names = names
        self._domain = domain

    async def host(self) -> HostNamesOut:
        found = self._engine.host_names.present
        if found is None:
            return HostNamesOut(on=False)
        who = found.authority
        server = f"{who.address}" if who.port == PORT else f"{who.address}#{who.port}"
        example, hint = self._example(who.domain), _hint(who.domain, server) if found.is_left_to_user else ""
        return HostNamesOut(on=True, way=found.way, domain=who.domain, server=server, example=example, hint=hint)

    async def turn_on_host(self) -> HostNamesOut:
        self._server()
        await self._engine.host_names.turn_on(self._domain)
        return await self.host()

    async def turn_off_host(self) -> None:
        await self._engine.host_names.turn_off()

    def _example(self, domain: str) -> str:
        """Return a name that the host can resolve: that of an endpoint, or its own; empty if there is no network."""
        served = [it.network for it in self._engine.registry.networks() if it.network.options.dns]
        for net in served:
            for entry in self._server().entries(net.id):
                if entry.names and entry.addresses:
                    return f"{entry.names[0]}.{net.name}.{domain}"
        return f"host.{domain}" if served else ""

    async def list(self, network: str = "") -> NamesOut:
        registry, server = self._engine.registry, self._server()
        records = [registry.network(network)] if network else registry.networks()
        found = [
            NameOut.of(one, record.network.name) for record in records for one in server.entries(record.network.id)
        ]
        return NamesOut(names=sorted(found, key=lambda one: (one.network, one.names[0], one.endpoint)))

    async def stats(self, network: str = "") -> AllStatsOut:
        registry, counts = self._engine.registry, self._server().counts
        records = [registry.network(network)] if network else registry.networks()
        served = [record.network for record in records if record.network.options.dns]
        found = [StatsOut.of(counts.get(net.id) or Counts(), net.name) for net in served]
        return AllStatsOut(networks=sorted(found, key=lambda one: one.network))

    async def query(self, body: QueryIn) -> AnswerOut:
        ids = [self._engine.registry.network(ref).network.id for ref in body.networks]
        message = _message(body)
        try:
            async with asyncio.timeout(PATIENCE_S):
                said = await self._server().ask(ids, message)
        except TimeoutError:
            said = None
        if said is None:
            raise NetplugError("unavailable", f"nobody answers for {body.name[:80]!r}")
        found = _answer(dnslib.DNSRecord.parse(said))
        if not any(self._engine.registry.network(ident).network.options.dns for ident in ids):
            found.why = "no names of this network are served (dns=off)"
        return found

    def _server(self) -> Names:
        if self._names is None:
            raise NetplugError("unavailable", "no name server runs here")
        return self._names


def _hint(domain: str, server: str) -> str:
    words = "the resolver that resolv.conf names is configured by another program: let it forward"
    return f"{words} {domain} to {server}, such as with server=/{domain}/{server} in dnsmasq"


def _message(body: QueryIn) -> bytes:
    name, kind = body.name, body.type.upper()
    with suppress(ValueError):  # not an address
        name, kind = ip_address(name).reverse_pointer, "PTR"
    if kind not in dnslib.QTYPE.reverse:
        raise NetplugError("invalid", f"{body.type!r} is no type of records", hint="A, AAAA, PTR, SRV, TXT, …")
    try:
        question = dnslib.DNSRecord.question(name, kind)
        question.add_ar(dnslib.EDNS0())
        return bytes(question.pack())
    except (dnslib.DNSError, UnicodeError) as exc:
        raise NetplugError("invalid", f"{name[:80]!r} is not a domain name") from exc


def _answer(packet: dnslib.DNSRecord) -> AnswerOut:
    records = [
        RecordOut(
            name=str(rr.rname).rstrip(".") or ".",
            type=str(dnslib.QTYPE.get(rr.rtype)),
            ttl=rr.ttl,
            data=str(rr.rdata),
        )
        for rr in packet.rr
    ]
    code = str(dnslib.RCODE.get(packet.header.rcode))
    return AnswerOut(code=code, answers=records, why=_reason(packet) or WORDS.get(code, ""))


def _reason(packet: dnslib.DNSRecord) -> str:
    """Return the text of an extended DNS error (RFC 8914 §2); empty if there is none."""
    options = [option for rr in packet.ar if rr.rtype == dnslib.QTYPE.OPT for option in rr.rdata]
    return next((option.data[2:].decode(errors="replace") for option in options if option.code == EXTENDED_ERROR), "")
