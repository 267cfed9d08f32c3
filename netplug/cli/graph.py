"""`netplug graph`: hosts, networks and containers, and how they hang together."""

from collections.abc import Callable
from typing import Annotated

import typer

from netplug.cli import USAGE, CliError
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, note


def graph(
    as_mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
    as_dot: Annotated[bool, typer.Option("--dot", help="Print it in the language of Graphviz.")] = False,
    as_svg: Annotated[bool, typer.Option("--svg", help="Print an image (SVG).")] = False,
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Draw hosts, networks and containers.

    In a cluster, it has the other hosts too, as far as the shared store tells. The same records give the same drawing.
    """
    if as_mermaid + as_dot + as_svg + as_json > 1:
        raise CliError(USAGE, "--mermaid, --dot, --svg and --json exclude each other")
    answer = Client(run_dir.absolute()).get("graph")
    if as_json:
        emit_json(answer)
        return
    from netplug.insight import drawing  # noqa: PLC0415 - other commands need not wait for it
    from netplug.insight.graph import Graph  # noqa: PLC0415
    from netplug.insight.svg import svg  # noqa: PLC0415

    note(answer)
    forms: tuple[tuple[bool, Callable[[Graph], str]], ...] = (
        (as_mermaid, drawing.mermaid),
        (as_dot, drawing.dot),
        (as_svg, svg),
        (True, drawing.text),
    )
    draw = next(form for wanted, form in forms if wanted)
    emit(draw(Graph.model_validate(answer)))
