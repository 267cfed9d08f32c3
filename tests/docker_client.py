"""Our Docker plugin on a fake kernel, and dockerd's way of calling it. For tests."""

import json
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any, cast

from built_in_drivers import DRIVERS
from fastapi import FastAPI

from netplug.engine import Engine
from netplug.frontends.docker.network import docker_app
from netplug.ipam.allocator import Allocator
from netplug.ipam.lease import OwnerKind
from netplug.ipam.spaces import default_spaces, ula
from netplug.kernel.fake.kernel import FakeKernel
from netplug.store.leases import StoredLeases
from netplug.store.sqlite import SqliteStore

NET = "a1" * 32
END = "e1" * 32
REF = {"NetworkID": NET, "EndpointID": END}
PORTMAP = "com.docker.network.portmap"
GENERIC = "com.docker.network.generic"
FIXTURES = Path(__file__).parent / "fixtures" / "docker"


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    headers: dict[str, str]

    @property
    def error(self) -> str:
        """The error's text, after a look at its form: both keys, one line, plain words."""
        assert self.status >= 400, f"answered {self.body}"
        assert set(self.body) == {"Err", "Error"}
        text = self.body["Err"]
        assert isinstance(text, str)
        assert text == self.body["Error"]
        assert text
        assert "\n" not in text
        assert len(text) < 700
        for word in ("Traceback", "Error", "Exception", "pydantic", "None", "NoneType", "str_type", "validation"):
            assert word not in text, text
        return text


class Plugin:
    """A plugin process; `restart` is a new one on the same store and kernel."""

    def __init__(self, kernel: FakeKernel, store: SqliteStore) -> None:
        self.kernel = kernel
        self.store = store
        self.activations = 0
        self.lost_requests = 0
        self.engine: Engine
        self._app: FastAPI | None = None

    @classmethod
    async def start(cls, kernel: FakeKernel | None = None) -> "Plugin":
        plugin = cls(kernel or FakeKernel(), await SqliteStore.open(":memory:"))
        await plugin.restart()
        return plugin

    async def restart(self) -> None:
        allocator = Allocator(StoredLeases(self.store), default_spaces(ula(b"tests")))
        await allocator.load()
        self.engine = Engine(self.kernel, self.store, allocator, DRIVERS)
        await self.engine.registry.load()
        await self.engine.base_plan.load()
        self._app = None

    @property
    def app(self) -> FastAPI:
        """The app of this process alone."""
        if self._app is None:
            self._app = docker_app(self.engine, on_activate=self._activated, on_lost_request=self._lost)
        return self._app

    @app.setter
    def app(self, app: FastAPI) -> None:
        self._app = app

    def _activated(self) -> None:
        self.activations += 1

    def _lost(self) -> None:
        self.lost_requests += 1

    async def call(self, path: str, body: object = None) -> Answer:
        """Call a method as dockerd does; `body`: bytes go as they are, None is no body at all."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode() + b"\n"
        _asked.set(self)
        return await call(self._app or _app_of_all(), path, raw, {"content-length": str(len(raw))})

    async def ok(self, path: str, body: object = None) -> Any:
        answer = await self.call(path, body)
        assert answer.status == 200, (path, answer.body)
        assert isinstance(answer.body, dict)
        return answer.body

    async def state(self) -> object:
        """Return all that a request could have changed."""
        records, _ = await self.store.range("")
        leases = [lease for pool in self.engine.allocator.pools() for lease in self.engine.allocator.leases(pool.id)]
        # Sysctls of links go with the links, and forwarding stays on: others may have come to need it.
        kernel = [line for line in self.kernel.dump().splitlines() if not line.startswith("sysctl ")]
        return (
            kernel,
            [(record.key, record.value) for record in records],
            self.engine.allocator.pools(),
            leases,
            self.engine.registry.networks(),
            self.engine.registry.endpoints(),
        )

    def leases(self, kind: OwnerKind) -> set[tuple[str, str, str]]:
        """Return (pool, address, owner's id) of the leases of this kind."""
        allocator = self.engine.allocator
        found = (lease for pool in allocator.pools() for lease in allocator.leases(pool.id))
        return {(lease.pool, str(lease.address), lease.owner.id) for lease in found if lease.owner.kind is kind}

    async def close(self) -> None:
        await self.store.close()


_asked: ContextVar[Plugin] = ContextVar("asked")


class _OfAsked:
    """An attribute of the plugin that is asked."""

    def __init__(self, *path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        # The app takes these when it is made, before any plugin is asked.
        if name in {"pools", "requests"}:
            return _OfAsked(*self._path, name)
        return getattr(reduce(getattr, self._path, _asked.get()), name)


@cache
def _app_of_all() -> FastAPI:
    """Return an app for all plugins: FastAPI takes longer to make one than to answer ten requests."""
    return docker_app(
        cast("Engine", _OfAsked("engine")),
        on_activate=lambda: _asked.get()._activated(),
        on_lost_request=lambda: _asked.get()._lost(),
    )


async def call(app: FastAPI, path: str, raw: bytes, headers: dict[str, str], *, method: str = "POST") -> Answer:
    """Call an ASGI app without a server."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b""), *((name.encode(), value.encode()) for name, value in headers.items())],
        "client": None,
        "server": ("/run/docker/plugins/pynet.sock", None),
    }
    # In pieces, so that a reader which stops reading can be told from one which does not.
    pieces = [raw[start : start + 65_536] for start in range(0, len(raw), 65_536)] or [b""]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], json.loads(body), {**found, "unread": str(len(pieces))})


def network(ident: str = NET, pool: str = "10.1.0.0/24", gateway: str = "10.1.0.1/24", **options: str) -> Any:
    data = {"AddressSpace": "LocalDefault", "Pool": pool, "Gateway": gateway, "AuxAddresses": {}}
    return {"NetworkID": ident, "Options": {GENERIC: options}, "IPv4Data": [data], "IPv6Data": []}


def endpoint(ident: str = END, address: str = "10.1.0.2/24", **options: object) -> Any:
    interface = {"Address": address, "AddressIPv6": "", "MacAddress": ""}
    return {"NetworkID": NET, "EndpointID": ident, "Interface": interface, "Options": options}


def port(host: int, inner: int = 80, host_ip: str = "") -> dict[str, Any]:
    return {"Proto": 6, "IP": "", "Port": inner, "HostIP": host_ip, "HostPort": host, "HostPortEnd": host}
