"""`netplug publish` and `netplug unpublish`: ports of endpoints that live."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from netplug.cli import arguments
from netplug.cli.client import Client
from netplug.cli.endpoints import marked
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, note, table

_Endpoint = Annotated[
    str,
    typer.Argument(
        metavar="ENDPOINT",
        help="Name or id of a container, name of a namespace, or id of an endpoint; with several networks "
        "NETWORK/NAME. Ids may be shortened.",
    ),
]
_Ports = Annotated[
    list[str],
    typer.Argument(
        metavar="PORT...",
        help="[ip:][host:]container[/proto], as with Docker's -p: '8080:80', '127.0.0.1:5353:53/udp', ranges such as "
        "'8000-8002:80-82'. '80' alone means any free host port; to 'unpublish', all host ports of port 80.",
    ),
]


def publish(endpoint: _Endpoint, ports: _Ports, as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Publish ports of a running container.

    The container of whatever runtime goes on without a restart. The ports are gone when it stops. The command prints
    what the endpoint publishes now.
    """
    _ask("publish", endpoint, ports, run_dir, as_json=as_json)


def unpublish(endpoint: _Endpoint, ports: _Ports, as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Unpublish ports that 'publish' or 'attach' has published.

    Ports that the container's runtime published stay. The command prints what the endpoint publishes now.
    """
    _ask("unpublish", endpoint, ports, run_dir, as_json=as_json)


def _ask(verb: str, endpoint: str, ports: Sequence[str], run_dir: Path, *, as_json: bool) -> None:
    body = {"endpoint": endpoint, "ports": arguments.ports(ports)}
    answer = Client(run_dir.absolute()).post(verb, body=body)
    note(answer)
    if as_json:
        emit_json(answer)
        return
    rows = [(answer["network"], answer["name"], port) for port in marked(answer)]
    emit(table(("network", "name", "port"), rows) if rows else "no published ports")
