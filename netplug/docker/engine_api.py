"""Docker's Engine API by aiodocker, which is imported at the first connection: it takes as long as the whole engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from netplug.tasks.apart import apart

if TYPE_CHECKING:
    import aiodocker


class LostError(Exception):
    """Docker is absent, does not answer in time, or refuses."""


@asynccontextmanager
async def connected(url: str) -> AsyncIterator["aiodocker.Docker"]:
    """Connect for the duration of the block.

    Raises:
        LostError: the connection, or a request in the block, failed.
    """
    for module in ("netplug.lean_aiohttp", "aiodocker"):
        await apart(partial(import_module, module))
    import aiodocker  # noqa: PLC0415 - see above

    from netplug.lean_aiohttp import aiohttp  # noqa: PLC0415

    try:
        async with aiodocker.Docker(url=url) as docker:
            yield docker
    except (aiodocker.DockerError, aiohttp.ClientError, OSError, TimeoutError) as exc:
        raise LostError(str(exc)) from exc
