"""Options that commands of all groups take."""

from pathlib import Path
from typing import Annotated

import typer

RUN_DIR = Path("/run/netplug")
RunDir = Annotated[
    Path,
    typer.Option(envvar="NETPLUG_RUN_DIR", metavar="DIR", help="The daemon's run directory, by which it is found."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with field names that stay.")]
