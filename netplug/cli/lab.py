"""`netplug lab`: several hosts on one machine, in namespaces."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from netplug.cli import NO, OK, USAGE, CliError
from netplug.cli.options import AsJson
from netplug.cli.output import emit, emit_json, table

app = typer.Typer(
    help="Build labs: several hosts on one machine.\n\nThe hosts are namespaces, and leave no trace. See docs/lab.md.",
    no_args_is_help=True,
)
BASE = Path("/var/lib/netplug-lab")

Base = Annotated[
    Path, typer.Option("--lab-dir", envvar="NETPLUG_LAB_DIR", metavar="DIR", help="Folder of the labs' files.")
]
Which = Annotated[str, typer.Option("--lab", metavar="NAME", help="Name of the lab. Default: the only one that is up.")]


@app.command()
def up(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file that describes the lab: see docs/lab.md.")],
    as_json: AsJson = False,
    base: Base = BASE,
) -> None:
    """Build a lab and wait until its containers reach each other.

    They must reach each other by name too. If a step fails, the lab is removed again.
    """
    from netplug.lab import build  # noqa: PLC0415 - only these commands need it
    from netplug.lab import file as files  # noqa: PLC0415

    with _errors():
        lab = files.load(file)
        _need_root()
        state = build.up(lab, base.absolute(), lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
        _show(state, as_json=as_json)


@app.command("ls")
def ls(as_json: AsJson = False, base: Base = BASE) -> None:
    """List the labs that are up."""
    from netplug.lab.state import names  # noqa: PLC0415

    found = names(base.absolute())
    if as_json:
        emit_json(found)
    elif found:
        emit("\n".join(found))


@app.command()
def status(which: Which = "", as_json: AsJson = False, base: Base = BASE) -> None:
    """Show hosts, containers and faults, and test traffic and names.

    Exit code 0: all containers of a network reach each other and resolve each other's names; 1: some do not.
    """
    with _errors():
        _need_root()
        answered = _show(_state(which, base), as_json=as_json)
    raise typer.Exit(OK if answered else NO)


@app.command("exec", context_settings={"ignore_unknown_options": True})
def exec_(
    where: Annotated[str, typer.Argument(metavar="HOST|CONTAINER", help="A host, a container, or etcd.")],
    command: Annotated[list[str], typer.Argument(metavar="-- CMD...", help="Command to run.")],
    which: Which = "",
    base: Base = BASE,
) -> None:
    """Run a command on a host or in a container.

    The exit code is that of the command.
    """
    from netplug.lab.containers import Container  # noqa: PLC0415

    with _errors():
        _need_root()
        state = _state(which, base)
        state.refuse_unknown(where)
        argv = list(command)
        if where in state.lab.containers:
            container = Container.of(state, where)
            argv = container.command(tuple(argv), tty=sys.stdin.isatty())
            where = container.part.host
        node = state.node(where)
    raise typer.Exit(node.call(argv))


@app.command()
def fault(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="cut, drop, stop, kill, hang, wipe, or mend.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARG]...", help="HOST, or BYTES for drop.")] = None,
    which: Which = "",
    base: Base = BASE,
) -> None:
    """Inject a fault, or undo all faults.

    cut HOST [OTHER]: drop all frames of a host, or between two hosts. drop BYTES: drop larger packets. stop, kill or
    hang HOST: stop, kill or freeze the host's daemon, or etcd. wipe etcd: delete etcd's data. mend: undo all faults.
    """
    from netplug.lab import faults  # noqa: PLC0415

    with _errors():
        _need_root()
        faults.fault(_state(which, base), kind, arguments or [])


@app.command()
def graph(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="File of a lab. Default: the lab that is up, with addresses."),
    ] = None,
    which: Which = "",
    base: Base = BASE,
) -> None:
    """Print a lab as a Mermaid flowchart."""
    from netplug.lab import file as files  # noqa: PLC0415
    from netplug.lab.status import graph as drawn  # noqa: PLC0415

    with _errors():
        if file:
            emit(drawn(files.load(file)))
            return
        state = _state(which, base)
        emit(drawn(state.lab, state))


@app.command()
def down(which: Which = "", base: Base = BASE) -> None:
    """Remove a lab completely."""
    from netplug.lab import build  # noqa: PLC0415

    with _errors():
        _need_root()
        build.down(_state(which, base))


def _state(which: str, base: Path) -> Any:
    from netplug.lab.state import find  # noqa: PLC0415

    return find(which, base.absolute())


def _need_root() -> None:
    if os.geteuid():
        raise CliError(NO, "a lab needs root, to create namespaces")


@contextmanager
def _errors() -> Iterator[None]:
    from netplug.errors import NetplugError  # noqa: PLC0415

    try:
        yield
    except NetplugError as exc:
        raise CliError(USAGE if exc.kind == "invalid" else NO, exc.message, hint=exc.hint) from None


def _show(state: Any, *, as_json: bool) -> bool:
    """Print the state of a lab; return whether all containers reach each other, by name too."""
    from netplug.lab.status import status as told  # noqa: PLC0415

    found = told(state)
    lost = [it for it in found["reach"] if not it["answers"]]
    unknown = [it for it in found["names"] if not it["resolves"]]
    answered = not lost and not unknown
    if as_json:
        emit_json(found)
        return answered
    emit(table(("host", "addresses", "processes", "differences"), [_host_row(it) for it in found["hosts"]]))
    emit("")
    rows = [
        (it["name"], it["host"], it["runtime"], [f"{net} {ip}" for net, ips in it["addresses"].items() for ip in ips])
        for it in found["containers"]
    ]
    emit(table(("container", "host", "runtime", "addresses"), rows))
    emit("")
    if found["faults"]:
        emit(f"faults: {', '.join(found['faults'])}")
    emit(f"{len(found['reach']) - len(lost)} of {len(found['reach'])} paths between containers work")
    for it in lost:
        emit(f"  {it['source']} does not reach {it['target']} at {it['address']} in {it['network']}")
    emit(f"{len(found['names']) - len(unknown)} of {len(found['names'])} names resolve")
    for it in unknown:
        emit(f"  {it['source']} does not resolve {it['name']} in {it['network']}: {it['reason']}")
    return answered


def _host_row(host: dict[str, Any]) -> tuple[str | list[str], ...]:
    if not host["up"]:
        return host["name"], host["addresses"], "ended", "?"
    processes = [name if lives else f"{name} (down)" for name, lives in host["processes"].items()]
    differences = "?" if host["differences"] is None else str(host["differences"])
    return host["name"], host["addresses"], processes or ["none"], "" if host["name"] == "etcd" else differences
