"""The commands of `netplug`. Their help texts are the manual."""

from pathlib import Path
from typing import Annotated

import typer

from netplug.cli import NO, OK, UNREACHABLE, CliError, arguments
from netplug.cli.client import Client
from netplug.cli.cni import app as cni
from netplug.cli.hosts import app as hosts
from netplug.cli.lab import app as lab
from netplug.cli.names import app as names
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, note, short, table
from netplug.cli.serving import serve
from netplug.daemon.version import own_version

app = typer.Typer(
    help="Networks, addresses and published ports for containers of every runtime.\n\n"
    "Exit codes: 0 success; 1 the request was refused, or differences were found; 2 wrong usage; "
    "3 the daemon or its store is unreachable. Errors are one line on stderr.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
networks = typer.Typer(help="Create, list, show and remove networks.")
ipam = typer.Typer(help="Show address pools and leases.")
app.add_typer(networks, name="network")
app.add_typer(ipam, name="ipam")
app.add_typer(names, name="dns")
app.add_typer(cni, name="cni")
app.add_typer(hosts, name="host")
app.add_typer(lab, name="lab")

NetworkRef = Annotated[str, typer.Argument(metavar="NETWORK", help="Name, id, or unique prefix of an id.")]
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
        emit(f"netplug {own_version()}")
        raise typer.Exit


@app.callback()
def before_commands(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show this command's version.")
    ] = False,
) -> None:
    """Handle the options before a command."""


@networks.command("create")
def network_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the network: letters, digits, '_', '.', '-'.")],
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="Mode: bridge (default), host, macvlan, none, overlay, or the mode of another driver.",
        ),
    ] = None,
    subnet: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="Subnet; give it twice for IPv4 and IPv6. Default: a free one."),
    ] = None,
    gateway: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IP",
            help="Gateway: the host's address in a --subnet, or with mode macvlan the router's. Default: the first "
            "address; none with macvlan.",
        ),
    ] = None,
    ip_range: Annotated[
        list[str] | None, typer.Option(metavar="CIDR", help="Part of a --subnet to allocate addresses from.")
    ] = None,
    internal: Annotated[
        bool, typer.Option("--internal", help="Isolate the network: no default route, no ports.")
    ] = False,
    ipv6: Annotated[
        bool, typer.Option("--ipv6", help="Use IPv4 and IPv6: each without a --subnet gets a free one.")
    ] = False,
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster", help="Create it on all hosts that share the store, with mode overlay; needs --store etcd."
        ),
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--option",
            metavar="KEY=VALUE",
            help="Network option such as icc=false, as with 'docker network create -o'; may be repeated. The error for "
            "an unknown option lists all options.",
        ),
    ] = None,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Create a network and print its id."""
    body = {
        "name": name,
        "subnets": arguments.subnets(subnet or [], gateway or [], ip_range or []),
        "internal": internal,
        "ipv6": ipv6,
        "cluster": cluster,
        "options": arguments.options(option or [], mode),
    }
    emit(_client(run_dir).post("networks", body=body)["id"])


@networks.command("ls")
def network_ls(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """List networks.

    The number of endpoints includes those of all hosts.
    """
    answer = _client(run_dir).get("networks")
    note(answer)
    rows = answer["networks"]
    if as_json:
        emit_json(rows)
        return
    columns = ("id", "name", "mode", "subnets", "internal", "front end", "endpoints")
    emit(
        table(
            columns,
            [
                (
                    short(row["id"]),
                    row["name"],
                    row["mode"],
                    [subnet["subnet"] for subnet in row["subnets"]],
                    "yes" if row["internal"] else "no",
                    row["front_end"],
                    str(row["endpoint_count"]),
                )
                for row in rows
            ],
        )
    )


@networks.command("inspect")
def network_inspect(
    network: NetworkRef,
    as_json: Annotated[bool, typer.Option("--json", hidden=True)] = False,  # noqa: ARG001 - the output is always JSON
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Print a network and its endpoints as JSON."""
    answer = _client(run_dir).get("networks", network)
    note(answer)
    emit_json(answer)


@networks.command("rm")
def network_rm(
    network: Annotated[list[str], typer.Argument(metavar="NETWORK...", help="Names or ids.")], run_dir: RunDir = RUN_DIR
) -> None:
    """Remove networks.

    The command is refused for networks with endpoints, and for Docker's networks (use 'docker network rm').
    """
    client = _client(run_dir)
    for ref in network:
        client.delete("networks", ref)
        emit(ref)


@app.command()
def attach(
    network: NetworkRef,
    netns: Netns,
    ifname: Ifname = "eth0",
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the endpoint, also in DNS.")] = "",
    alias: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Additional DNS name; may be repeated.")
    ] = None,
    ip: Annotated[
        list[str] | None,
        typer.Option(metavar="IP", help="Address; give it twice for IPv4 and IPv6. Default: a free one."),
    ] = None,
    mac: Annotated[
        str, typer.Option(metavar="MAC", help="MAC of the interface. Default: derived from the address.")
    ] = "",
    publish: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PORT",
            help="Publish a port: [ip:][host:]container[/proto], as with Docker's -p. '8000-8009:80' uses the first "
            "free port, '8000-8002:80-82' pairs of ports, '80' any free port; write IPv6 addresses in brackets.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o", "--option", metavar="KEY=VALUE", help="Endpoint option such as rate=10mbit; may be repeated."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", hidden=True)] = False,  # noqa: ARG001 - the output is always JSON
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


@app.command()
def ps(
    network: Annotated[str, typer.Option(metavar="NETWORK", help="Only endpoints of this network.")] = "",
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """List endpoints with their addresses and published ports.

    An endpoint is the attachment of one container, or one namespace, to one network. In a network of a cluster, the
    list includes the endpoints of all hosts; it shows published ports only for this host.
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
                    row["ports"],
                )
                for row in rows
            ],
        )
    )


@ipam.command("ls")
def ipam_ls(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """List address pools and their leases.

    Pools are shown with size and use, leases with their owners.
    """
    pools = _client(run_dir).get("ipam")["pools"]
    if as_json:
        emit_json(pools)
        return
    emit(
        table(
            ("space", "subnet", "range", "size", "used", "kept", "networks"),
            [
                (
                    pool["space"],
                    pool["subnet"],
                    pool["range"] or "",
                    str(pool["size"]),
                    str(pool["used"]),
                    str(pool["kept"]),
                    pool["networks"] or [""],
                )
                for pool in pools
            ],
        )
    )
    leases = [(pool["subnet"], lease) for pool in pools for lease in pool["leases"]]
    emit("")
    emit(
        table(
            ("subnet", "address", "owner", "name", "owner id", "host", "until"),
            [
                (
                    net,
                    one["address"],
                    one["owner_kind"],
                    one["owner_name"],
                    short(one["owner_id"]),
                    one["host"],
                    one["until"] or "",
                )
                for net, one in leases
            ],
        )
    )


@ipam.command("audit")
def ipam_audit(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Show differences between leases and endpoints.

    This includes leaked leases. Exit code 0: there are none; 1: there are some.
    """
    found = _client(run_dir).get("ipam/audit")["findings"]
    if as_json:
        emit_json(found)
    else:
        rows = [(one["subnet"], one["address"], one["what"]) for one in found]
        emit(table(("subnet", "address", "what"), rows) if rows else "no findings")
    raise typer.Exit(NO if found else OK)


@app.command()
def diff(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Show differences between records and kernel.

    The records say what was requested. They are compared with links, addresses, firewall rules and the records of
    other hosts. Exit code 0: there are no differences; 1: there are some.
    """
    found = _client(run_dir).get("diff")["differences"]
    if as_json:
        emit_json(found)
    else:
        emit(_differences(found) if found else "no differences")
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
    mine = own_version()
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


app.command()(serve)


def _client(run_dir: Path) -> Client:
    return Client(run_dir.absolute())


def _differences(found: list[dict[str, str]]) -> str:
    return table(("owner", "object", "what"), [(row["owner"], row["object"], row["what"]) for row in found])
