"""`netplug serve`: the daemon, with a flag for each of its settings."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from netplug.cli import NO, UNREACHABLE, USAGE, CliError

_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def serve(
    state_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Where networks, endpoints and leases are kept, over reboots too. [/var/lib/netplug]"
        ),
    ] = None,
    run_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Where other netplug commands and CNI executables find the daemon. [/run/netplug]"
        ),
    ] = None,
    plugin_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where Docker looks for plugins. [/run/docker/plugins]")
    ] = None,
    driver_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The driver's name for 'docker network create -d'. [pynet]")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="sqlite, or etcd://host:port[,host:port]... for what hosts share. [sqlite]"),
    ] = None,
    etcd_ca: Annotated[
        str | None, typer.Option(metavar="FILE", help="Authority of etcd's certificates (PEM); makes it TLS.")
    ] = None,
    etcd_cert: Annotated[str | None, typer.Option(metavar="FILE", help="Our certificate for etcd (PEM).")] = None,
    etcd_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its key (PEM).")] = None,
    etcd_for_containers: Annotated[
        bool | None,
        typer.Option("--etcd-for-containers", help="Let containers connect to etcd's endpoints too. [refused]"),
    ] = None,
    docker_host: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Docker's API, for names; 'none': without. [unix:///var/run/docker.sock]"),
    ] = None,
    host_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What lists call this host. [the system's name]")
    ] = None,
    vtep: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address of this host, or link with one, to which the others tunnel. [the one towards etcd]",
        ),
    ] = None,
    address_pool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="base=CIDR,size=BITS",
            help="Range that subnets are cut from; may be repeated. [base=10.208.0.0/12,size=24]",
        ),
    ] = None,
    dns_domain: Annotated[
        str | None, typer.Option(metavar="DOMAIN", help="What full names end in. [netplug.internal]")
    ] = None,
    dns_upstream: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[DOMAIN=]ADDRESS[#PORT]",
            help="Name server to ask for names that are not netplug's, of one domain or all; may be repeated. "
            "[those of resolv.conf]",
        ),
    ] = None,
    dns_special: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Names of special use such as srv.corp.local: 'host' asks the host's name servers for those below its "
            "search list, 'inside' asks nobody. [host]",
        ),
    ] = None,
    log_format: Annotated[str | None, typer.Option(metavar="FORMAT", help="console or json. [console]")] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error. [info]")
    ] = None,
) -> None:
    """Run the daemon in the foreground.

    Each option may be given as NETPLUG_STATE_DIR and so on in the environment, or as state_dir in
    /etc/netplug/netplug.toml (another file: NETPLUG_CONFIG). etcd's user and password have no flag, which all could
    read: NETPLUG_ETCD_USER, NETPLUG_ETCD_PASSWORD. systemd is told when it is ready. SIGTERM stops it and
    leaves the containers' network as it is.
    """
    _serve(dict(locals()))  # each parameter is a setting of its name


def _serve(flags: dict[str, object]) -> None:
    _structlog_alone()
    from netplug.config import load  # noqa: PLC0415 - client commands need not wait for the daemon's imports
    from netplug.errors import NetplugError  # noqa: PLC0415
    from netplug.secrets import hide_arguments  # noqa: PLC0415

    hide_arguments()
    try:
        settings = load(**flags)
    except NetplugError as exc:
        raise CliError(USAGE, exc.message, hint=exc.hint) from None
    _refuse_without_rights()
    from netplug.daemon import run  # noqa: PLC0415

    try:
        run(settings)
    except NetplugError as exc:
        code = {"invalid": USAGE, "internal": NO}.get(exc.kind, UNREACHABLE)
        raise CliError(code, exc.message, hint=exc.hint) from None


def _refuse_without_rights() -> None:
    """Refuse who may not change networks nor enter namespaces (capabilities(7)): they would fail later."""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    granted = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    missing = [name for name, number in _NEEDED.items() if not granted & 1 << number]
    if missing:
        words = "netplug serve needs root" if os.geteuid() else f"netplug serve lacks {' and '.join(missing)}"
        raise CliError(NO, f"{words}: it makes links, rules and sockets in namespaces", hint="sudo netplug serve")


def _structlog_alone() -> None:
    """Load structlog without rich, which it would take 4 MB for: tracebacks in the log are plain (`netplug.log`)."""
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # how an import is made to fail (importlib)
    try:
        import structlog  # noqa: F401, PLC0415
    finally:
        del sys.modules["rich"]
