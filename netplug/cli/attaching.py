"""`netplug attach` and `netplug detach`: any network namespace as an endpoint, without a runtime."""

from typing import Annotated

import typer

from netplug.cli import arguments
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, NetworkRef, RunDir
from netplug.cli.output import emit_json

_Netns = Annotated[
    str,
    typer.Option(
        metavar="PATH_OR_NAME",
        help="Network namespace: a path such as /proc/4711/ns/net, or a name of 'ip netns'.",
    ),
]
_Ifname = Annotated[str, typer.Option(metavar="NAME", help="Name of the interface in the namespace.")]
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


def attach(
    network: NetworkRef,
    netns: _Netns,
    ifname: _Ifname = "eth0",
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
    emit_json(Client(run_dir.absolute()).post("attach", body=body))


def detach(network: NetworkRef, netns: _Netns, ifname: _Ifname = "eth0", run_dir: RunDir = RUN_DIR) -> None:
    """Detach a network namespace from a network.

    The namespace must have been attached by 'attach'. It may already be deleted.
    """
    body = {"network": network, "netns": arguments.netns(netns), "ifname": arguments.ifname(ifname)}
    Client(run_dir.absolute()).post("detach", body=body)
