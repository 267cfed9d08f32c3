"""The page of `--http`, as background work of the daemon, which works without while the port is taken."""

import asyncio
from typing import TYPE_CHECKING

import structlog

from netplug.config import Settings
from netplug.frontends.tcp import serving_tcp
from netplug.insight.http import Metrics, PageApp
from netplug.insight.http_access import TOKEN_FILE, Access, token_in

if TYPE_CHECKING:
    from starlette.types import ASGIApp

log = structlog.get_logger(__name__)


async def serve_page(settings: Settings, api: "ASGIApp", metrics: Metrics | None = None) -> None:
    """Serve the page until cancelled.

    Raises:
        NetplugError: the port is in use, the address is not of this host, or the token is unreadable.
    """
    at = settings.http_at
    if at is None:
        return
    address, port = at
    token = None if address.is_loopback else await asyncio.to_thread(token_in, settings.state_dir)
    app = PageApp(api, Access(token, port), metrics)
    async with serving_tcp(app, address, port):
        where = {} if token is None else {"token": str(settings.state_dir / TOKEN_FILE)}
        log.info("page.listening", url=f"http://{settings.http}/", **where)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            app.end()
