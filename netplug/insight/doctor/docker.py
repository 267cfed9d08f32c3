"""Checks of Docker: whether it answers, and whether it is recent enough."""

import asyncio
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from netplug.insight.doctor.findings import Finding, failure, ok, unchecked, warning
from netplug.insight.doctor.subject import HostSubject
from netplug.tasks.apart import apart

if TYPE_CHECKING:
    from netplug.insight.insight import Subject

OLDEST = (20, 10)
"""What the integration tests run with."""
_ANSWER_S = 1.0
_START_S = 0.7
_MOST_BYTES = 1 << 20


async def engine(host: HostSubject) -> Iterable[Finding]:
    """Find a Docker that does not answer, or is too old."""
    url = host.settings.docker_host
    if url == "none":
        return [ok("netplug does not follow Docker (docker_host is none)")]
    path = Path(url.removeprefix("unix://"))
    if not await apart(path.exists):
        return [ok(f"there is no Docker at {path}")]
    try:
        async with asyncio.timeout(_ANSWER_S):
            version = await _version(path)
    except TimeoutError:
        words = f"dockerd does not answer at {path} within {_ANSWER_S:g} s: names of its containers are not learnt"
        return [failure(words, "systemctl restart docker (journalctl -u docker says why)")]
    except PermissionError:
        return [unchecked(f"no permission to ask dockerd at {path}", "run as root")]
    except OSError as exc:
        words = f"no dockerd listens at {path} ({(exc.strerror or str(exc)).lower()})"
        return [warning(words, "systemctl start docker; or netplug serve --docker-host none")]
    except ValueError:
        return [warning(f"what answers at {path} is not dockerd", "netplug serve --docker-host unix:///PATH")]
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return [warning(f"dockerd is of version {version}; netplug needs {oldest} or later", "upgrade Docker")]
    return [ok(f"dockerd {version} answers")]


async def resolvers(subject: "Subject") -> Iterable[Finding]:
    """Find containers of Docker that do not ask netplug for names."""
    unserved = subject.resolvers.unserved() if subject.resolvers else []
    if unserved:  # a container that starts just now is served in a moment
        await asyncio.sleep(_START_S)
        again = {it.endpoint.id for it in subject.resolvers.unserved()} if subject.resolvers else set()
        unserved = [it for it in unserved if it.endpoint.id in again]
    words = "asks Docker's resolver, which knows no names of containers of other runtimes"
    mend = "docker restart"
    return [
        warning(f"container {it.name or it.container[:12]} {words}", f"{mend} {it.name or it.container[:12]}")
        for it in unserved
    ]


async def _version(path: Path) -> str:
    """Return the version of the engine. http.client would block; aiohttp takes 8 MB."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n")
        await writer.drain()
        said = await reader.read(_MOST_BYTES)
        while more := await reader.read(_MOST_BYTES):
            said += more
    finally:
        writer.close()
    found = json.loads(said.partition(b"\r\n\r\n")[2])
    version = found.get("Version") if isinstance(found, dict) else None
    if not isinstance(version, str) or not re.search(r"\d", version):
        raise ValueError("no version")
    return version
