"""Options that the commands of all groups share."""

from pathlib import Path
from typing import Annotated

import typer

RUN_DIR = Path("/run/netplug")
RunDir = Annotated[
    Path,
    typer.Option(envvar="NETPLUG_RUN_DIR", metavar="DIR", help="Run directory of the daemon."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; its field names are stable.")]
NetworkRef = Annotated[str, typer.Argument(metavar="NETWORK", help="Name, id, or unique prefix of an id.")]
