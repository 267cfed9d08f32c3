"""The commands of `netplug`. Their help texts are the manual."""

from pathlib import Path
from typing import Annotated, Any

import typer

from netplug import __version__
from netplug.cli import NO, OK, UNREACHABLE, CliError, arguments
from netplug.cli.capture import capture
from netplug.cli.client import Client
from netplug.cli.cni import app as cni
from netplug.cli.completion.command import completion
from netplug.cli.doctor import doctor
from netplug.cli.events import events
from netplug.cli.graph import graph
from netplug.cli.hosts import app as hosts
from netplug.cli.ipam import app as ipam
from netplug.cli.lab import app as lab
from netplug.cli.names import app as names
from netplug.cli.networks import app as networks
from netplug.cli.options import RUN_DIR, AsJson, NetworkRef, RunDir
from netplug.cli.output import counted, emit, emit_json, note, short, table
from netplug.cli.publishing import marked, publish, unpublish
from netplug.cli.serving import serve
from netplug.cli.top import top
from netplug.cli.trace import trace

app = typer.Typer(
    help="Networks, addresses and published ports for containers of every runtime.\n\n"
    "Exit codes: 0 success; 1 the request was refused, or differences were found; 2 wrong usage; "
    "3 the daemon or its store is unreachable. Errors are one line on stderr.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(networks, name="network")
app.add_typer(ipam, name="ipam")
app.add_typer(names, name="dns")
app.add_typer(cni, name="cni")
app.add_typer(hosts, name="host")
app.add_typer(lab, name="lab")

Netns = Annotated[
    str,
    typer.Option(
        metavar="PATH_OR_NAME",
        help="Network namespace: a path such as /proc/4711/ns/net, or a name of 'ip netns'.",
    ),
]
Ifname = Annotated[str, typer.Option(metavar="NAME", help="Name of the interface in the namespace.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        emit(f"netplug {__version__}")
        raise typer.Exit


@app.callback()
def before_commands(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show this command's version.")
    ] = False,
) -> None:
    """Handle the options before a command."""


_Name = Annotated[str, typer.Option(metavar="NAME", help="Name of the endpoint, also in DNS.")]
_Alias = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Additional DNS name; may be repeated.")]
_Ip = Annotated[
    list[str] | None,
    typer.Option(metavar="IP", help="Address; give it twice for IPv4 and IPv6. Default: a free one."),
]
_Mac = Annotated[str, typer.Option(metavar="MAC", help="MAC of the interface. Default: derived from the address.")]
_Publish = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PORT",
        help="Publish a port: [ip:][host:]container[/proto], as with Docker's -p. '8000-8009:80' uses the first "
        "free port, '8000-8002:80-82' pairs of ports, '80' any free port; write IPv6 addresses in brackets.",
    ),
]
_Option = Annotated[
    list[str] | None,
    typer.Option("-o", "--option", metavar="KEY=VALUE", help="Endpoint option such as rate=10mbit; may be repeated."),
]
_AsJson = Annotated[bool, typer.Option("--json", hidden=True)]


@app.command()
def attach(
    network: NetworkRef,
    netns: Netns,
    ifname: Ifname = "eth0",
    name: _Name = "",
    alias: _Alias = None,
    ip: _Ip = None,
    mac: _Mac = "",
    publish: _Publish = None,
    option: _Option = None,
    as_json: _AsJson = False,  # noqa: ARG001 - the output is always JSON
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Attach a network namespace to a network.

    This needs no container runtime. The command prints the result as JSON.
    """
    body = {
        "network": network,
        "netns": arguments.netns(netns),
        "ifname": arguments.ifname(ifname),
        "name": name,
        "aliases": alias or [],
        "addresses": [arguments.address(text, "--ip") for text in ip or []],
        "mac": arguments.mac(mac),
        "ports": arguments.ports(publish or []),
        "options": arguments.options(option or [], None),
    }
    emit_json(_client(run_dir).post("attach", body=body))


@app.command()
def detach(network: NetworkRef, netns: Netns, ifname: Ifname = "eth0", run_dir: RunDir = RUN_DIR) -> None:
    """Detach a network namespace from a network.

    The namespace must have been attached by 'attach'. It may already be deleted.
    """
    body = {"network": network, "netns": arguments.netns(netns), "ifname": arguments.ifname(ifname)}
    _client(run_dir).post("detach", body=body)


app.command()(publish)
app.command()(unpublish)
app.command()(capture)
app.command()(top)
app.command()(trace)


@app.command()
def ps(
    network: Annotated[str, typer.Option(metavar="NETWORK", help="Only endpoints of this network.")] = "",
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """List endpoints with their addresses and published ports.

    An endpoint is the attachment of one container, or one namespace, to one network. In a network of a cluster, the
    list includes the endpoints of all hosts; it shows published ports only for this host. "(added)" marks those that
    'publish' added.
    """
    query = {"network": network} if network else {}
    answer = _client(run_dir).get("endpoints", **query)
    note(answer)
    rows = answer["endpoints"]
    if as_json:
        emit_json(rows)
        return
    columns = ("id", "network", "name", "container", "addresses", "mac", "host", "front end", "ports")
    emit(
        table(
            columns,
            [
                (
                    short(row["id"]),
                    row["network"],
                    row["name"],
                    short(row["container"]),
                    [address.partition("/")[0] for address in row["addresses"]],
                    row["mac"],
                    row["host"],
                    row["front_end"],
                    marked(row),
                )
                for row in rows
            ],
        )
    )


@app.command()
def diff(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Show differences between records and kernel.

    The records say what was requested. They are compared with links, addresses, firewall rules and the records of
    other hosts. Exit code 0: there are no differences; 1: there are some.
    """
    answer = _client(run_dir).get("diff")
    found = answer["differences"]
    if as_json:
        emit_json(found)
    else:
        emit(_differences(found) if found else _agreed(answer))
    raise typer.Exit(NO if found else OK)


@app.command()
def repair(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Repair the differences that 'diff' shows.

    The command prints what it repaired and what remains. Exit code 0: nothing remains; 1: something remains.
    """
    client = _client(run_dir)
    repaired = client.post("repair")["differences"]
    left = client.get("diff")["differences"]
    if as_json:
        emit_json(repaired)
    else:
        parts = [
            f"{word}:\n{_differences(rows)}" for word, rows in (("repaired", repaired), ("remaining", left)) if rows
        ]
        emit("\n".join(parts) or "nothing to repair")
    if left:
        count = "1 difference remains" if len(left) == 1 else f"{len(left)} differences remain"
        raise CliError(NO, f"{count} after the repair", hint="see the log of netplug serve")


@app.command()
def version(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Print the version of this command and of the daemon."""
    mine = __version__
    try:
        daemon = _client(run_dir).get("version")["version"]
    except CliError as exc:
        if exc.code != UNREACHABLE:
            raise
        daemon = None
    if as_json:
        emit_json({"version": mine, "daemon": daemon})
        return
    emit(f"netplug {mine}" + (f"\ndaemon {daemon}" if daemon else ""))


app.command()(graph)
app.command()(doctor)
app.command()(events)
app.command()(completion)
app.command()(serve)


def _client(run_dir: Path) -> Client:
    return Client(run_dir.absolute())


def _differences(found: list[dict[str, str]]) -> str:
    return table(("owner", "object", "what"), [(row["owner"], row["object"], row["what"]) for row in found])


def _agreed(answer: dict[str, Any]) -> str:
    """Return in one line what was compared."""
    if "networks" not in answer:
        return "no differences"  # by a daemon of a former version
    networks, endpoints = counted(answer["networks"], "network"), counted(answer["endpoints"], "endpoint")
    return f"no differences: {networks} and {endpoints} compared with the kernel"
