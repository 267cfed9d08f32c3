"""A tiny Engine API over a unix socket: networks, containers, and the stream of events. For tests."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from aiohttp import web


class DockerApi:
    """`start` and `stop` as often as wanted; what is in `networks` and `containers` is what it knows.

    `damaged`: containers that it cannot inspect. `follows`: clear it, and who asks for events has to wait.
    """

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self.networks: dict[str, str] = {}
        self.ipam: dict[str, Any] = {}
        self.containers: dict[str, dict[str, Any]] = {}
        self.listening = asyncio.Event()
        self.listed = asyncio.Event()
        self.filters: Any = None
        self.gone_after_list: set[str] = set()
        self.inspected: list[str] = []
        self.fails = False
        self.damaged: set[str] = set()
        self.follows = asyncio.Event()
        self.follows.set()
        self.told: list[tuple[float, dict[str, Any]]] = []
        self.root = "/var/lib/docker"
        self._path = path
        self._streams: list[asyncio.Queue[dict[str, Any] | None]] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1.47/info", self._info)
        app.router.add_get("/v1.47/networks", self._networks)
        app.router.add_get("/v1.47/containers/json", self._list)
        app.router.add_get("/v1.47/containers/{ident}/json", self._inspect)
        app.router.add_get("/v1.47/events", self._events)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._path)).start()

    async def stop(self) -> None:
        self.listening.clear()
        self.listed.clear()
        for stream in self._streams:
            stream.put_nowait(None)
        if self._runner:
            await self._runner.cleanup()
        self._runner = None
        self._path.unlink(missing_ok=True)

    def run_container(self, ident: str, name: str, **endpoints: tuple[str, str]) -> None:
        """Have a running container; `endpoints`: (network id, endpoint id) by network."""
        networks = {key: {"NetworkID": net, "EndpointID": end} for key, (net, end) in endpoints.items()}
        self.containers[ident] = {"Id": ident, "Name": f"/{name}", "NetworkSettings": {"Networks": networks}}

    def create_container(self, ident: str, name: str, network: str, ip: str, network_id: str = "") -> None:
        """Have a container that does not run, made with ``--ip``; before its first start Docker tells no network id."""
        settings = {"NetworkID": network_id, "EndpointID": "", "IPAMConfig": {"IPv4Address": ip}}
        self.containers[ident] = {
            "Id": ident,
            "Name": f"/{name}",
            "State": {"Status": "created"},
            "NetworkSettings": {"Networks": {network: settings}},
        }

    def tell(self, kind: str, action: str, ident: str, **attributes: str) -> None:
        event = {"Type": kind, "Action": action, "Actor": {"ID": ident, "Attributes": attributes}, "time": 1}
        self.told.append((time.time(), event))
        for stream in self._streams:
            stream.put_nowait(event)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.47"})

    async def _info(self, _: web.Request) -> web.Response:
        return web.json_response({"DockerRootDir": self.root})

    async def _networks(self, _: web.Request) -> web.Response:
        if self.fails:
            return web.json_response({"message": "out of order"}, status=500)
        return web.json_response(
            [{"Id": ident, "Name": name, "IPAM": self.ipam.get(ident)} for ident, name in self.networks.items()]
        )

    async def _list(self, request: web.Request) -> web.Response:
        if self.fails:
            return web.json_response({"message": "out of order"}, status=500)
        self.listed.set()
        found = self.containers.values()
        if "all" not in request.query:
            found = [c for c in found if (c.get("State") or {}).get("Status", "running") == "running"]
        return web.json_response([{**c, "Names": [c["Name"]]} for c in found])

    async def _inspect(self, request: web.Request) -> web.Response:
        ident = request.match_info["ident"]
        self.inspected.append(ident)
        if ident in self.damaged:
            return web.json_response({"message": "RWLayer is unexpectedly nil"}, status=500)
        if ident not in self.containers:
            return web.json_response({"message": "no such container"}, status=404)
        answer = web.json_response(self.containers[ident])
        if ident in self.gone_after_list:
            del self.containers[ident]
        return answer

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.filters = json.loads(request.query["filters"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        waits = not self.follows.is_set()
        await self.follows.wait()
        await response.prepare(request)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        for when, event in self.told if waits else ():
            if when >= float(request.query.get("since", "inf")):
                queue.put_nowait(event)
        self._streams.append(queue)
        self.listening.set()
        try:
            while (event := await queue.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self._streams.remove(queue)
        return response
