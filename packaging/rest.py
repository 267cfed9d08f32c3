"""Describe the REST API: docs/openapi.json, and docs/rest.md for readers.

Both come from the daemon's own description, of a daemon on a kernel in memory.
"""

import asyncio
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any

from netplug.cluster.identity import Machine
from netplug.config import load
from netplug.daemon.composition import compose, open_host
from netplug.kernel.fake.kernel import FakeKernel

HEAD = """# REST API

The daemon answers HTTP on its Unix socket, `/run/netplug/netplug.sock`. The commands use nothing else. As root:

<!-- scene: netplug -->
```console
# curl --unix-socket /run/netplug/netplug.sock http://netplug/v1/networks
# curl --unix-socket /run/netplug/netplug.sock http://netplug/v1/networks --json '{"name": "blue"}'
```

Bodies and answers are JSON. Unknown fields of a body are refused by name. Fields of answers stay and keep their meaning
within `/v1`; new ones may come. [openapi.json](openapi.json) says the same as OpenAPI 3.1, as does the daemon itself at
`/openapi.json`. Some of the GET requests are served over TCP too: [page.md](page.md).

The API of Docker plugins, at `/run/docker/plugins/pynet.sock`, is Docker's: see [docker.md](docker.md).

<!-- `make docs` writes this file. -->

An error has a status from 400 on, and this body:

```json
{"error": {"kind": "not_found", "message": "there is no network 'green'", "hint": ""}}
```

| kind | status | meaning |
|---|---|---|
| `invalid` | 400 | the request is wrong; `message` names the field and its value |
| `not_found` | 404 | there is no such object |
| `exists`, `forbidden` | 409 | the request cannot be granted as things are |
| `internal` | 500 | a fault of netplug; the log has the traceback |
| `unavailable`, `unreachable` | 503 | something that is needed does not answer; `unreachable` is the shared store |
"""


@cache
def described() -> dict[str, Any]:
    """Return the API as OpenAPI, of a daemon without a cluster and without Docker, which has the same routes."""
    return asyncio.run(_described())


async def _described() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = load(
            state_dir=folder, run_dir=folder / "run", plugin_dir=folder, docker_host="none", host_name="host-a"
        )
        async with AsyncExitStack() as resources:
            host = await open_host(settings, resources, kernel=_kernel, machine=Machine("machine", {}))
            api: Any = (await compose(host, None, docker=False)).api
            found: dict[str, Any] = api.openapi()
            return found


async def _kernel() -> FakeKernel:
    return FakeKernel()


def openapi(api: Mapping[str, Any]) -> str:
    """Return docs/openapi.json. It has no version of netplug, so it changes with the API alone."""
    info = {**api["info"], "version": "v1"}
    return json.dumps({**api, "info": info}, indent=1, ensure_ascii=False) + "\n"


def document(api: Mapping[str, Any]) -> str:
    """Return docs/rest.md."""
    lines = [HEAD, "## Operations", "", "| | |", "|---|---|"]
    found = [(f"{method.upper()} {path}", it) for path, them in api["paths"].items() for method, it in them.items()]
    lines += [f"| [`{name}`](#{_anchor(name)}) | {operation['summary']} |" for name, operation in found]
    for name, operation in found:
        lines += ["", f"### {name}", "", operation["summary"], *_parameters(operation), *_bodies(operation)]
    lines += ["", "## Bodies", "", "In the order of their names. *default*: what a field has that is not sent."]
    for name, schema in sorted(api["components"]["schemas"].items()):
        if name != "Error":
            lines += ["", f"### {name}", *_schema(schema)]
    return "\n".join(lines) + "\n"


def _parameters(operation: Mapping[str, Any]) -> Iterator[str]:
    found = [it for it in operation.get("parameters", ()) if it["in"] != "path"]
    if found:
        yield from ("", "| parameter | | type | default |", "|---|---|---|---|")
    for it in found:
        default = "required" if it["required"] else _default(it["schema"])
        yield f"| `{it['name']}` | {it['in']} | {_type(it['schema'])} | {default} |"


def _bodies(operation: Mapping[str, Any]) -> Iterator[str]:
    sent = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    status, answer = next((code, it) for code, it in operation["responses"].items() if code != "default")
    got = answer.get("content", {}).get("application/json", {}).get("schema")
    body = f"Body: {_type(sent)}. " if sent else ""
    said = "nothing" if got is None else _type(got)
    yield from ("", f"{body}Answer {status}: {said}.")


def _schema(schema: Mapping[str, Any]) -> Iterator[str]:
    words = " ".join(schema.get("description", "").replace("``", "`").split())
    if words:
        yield from ("", words)
    required = schema.get("required", ())
    yield from ("", "| field | type | default |", "|---|---|---|")
    for name, field in schema.get("properties", {}).items():
        yield f"| `{name}` | {_type(field)} | {'' if name in required else _default(field)} |"


def _type(schema: Mapping[str, Any]) -> str:
    """Return a type in words, with links to bodies."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(_type(it) for it in schema.get("anyOf") or schema["oneOf"]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema["const"]]
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    kind: str = schema.get("type", "")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    more = schema.get("additionalProperties")
    if kind == "object" and isinstance(more, dict) and more:
        return f"object of {_type(more)}"
    return {"": "JSON", "null": "null"}.get(kind, kind)


def _default(schema: Mapping[str, Any]) -> str:
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else ""


def _anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
