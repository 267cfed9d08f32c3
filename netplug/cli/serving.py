"""`netplug serve`: the daemon, with a flag for each of its settings."""

import gc
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from netplug.cli import NO, UNREACHABLE, USAGE, CliError

_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


_StateDir = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the database with networks, endpoints and leases; survives reboots. [/var/lib/netplug]",
    ),
]
_RunDir = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder of the sockets for netplug commands and CNI executables. [/run/netplug]"),
]
_PluginDir = Annotated[
    str | None, typer.Option(metavar="DIR", help="Folder in which Docker looks for plugins. [/run/docker/plugins]")
]
_DriverName = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the driver for 'docker network create -d'. [pynet]")
]
_Store = Annotated[
    str | None,
    typer.Option(
        metavar="STORE", help="sqlite, or etcd://host:port[,host:port]... for a store that hosts share. [sqlite]"
    ),
]
_EtcdCa = Annotated[str | None, typer.Option(metavar="FILE", help="CA of etcd's certificates (PEM); enables TLS.")]
_EtcdCert = Annotated[str | None, typer.Option(metavar="FILE", help="Client certificate for etcd (PEM).")]
_EtcdKey = Annotated[str | None, typer.Option(metavar="FILE", help="Key of the client certificate (PEM).")]
_EtcdForContainers = Annotated[
    bool | None,
    typer.Option("--etcd-for-containers", help="Allow containers to connect to etcd's endpoints. [refused]"),
]
_ClusterAllow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CIDR|BRIDGE",
        help="Subnet that is not private, or bridge of this host, that networks of other hosts may have; may be "
        "repeated. [none]",
    ),
]
_DockerHost = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Docker's Engine API, for container names; 'none' turns it off. [unix:///var/run/docker.sock]",
    ),
]
_HostName = Annotated[str | None, typer.Option(metavar="NAME", help="Name of this host in lists. [the system's name]")]
_Vtep = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Address or link of this host to which other hosts send their tunnels. [the address towards etcd]",
    ),
]
_AddressPool = Annotated[
    list[str] | None,
    typer.Option(
        metavar="base=CIDR,size=BITS",
        help="Range that subnets are allocated from; may be repeated. [base=10.208.0.0/12,size=24]",
    ),
]
_ForwardOthers = Annotated[
    bool | None,
    typer.Option(
        "--forward-others",
        help="Where netplug turns IP forwarding on, let the host forward between all its links. [its networks only]",
    ),
]
_DnsDomain = Annotated[str | None, typer.Option(metavar="DOMAIN", help="Domain of full names. [netplug.internal]")]
_DnsUpstream = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[DOMAIN=]ADDRESS[#PORT]",
        help="Resolver for external names, of one domain or all; may be repeated. [those of resolv.conf]",
    ),
]
_DnsSpecial = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="Special-use names such as srv.corp.local: 'host' forwards those below the host's search list to the "
        "host's resolvers, 'inside' forwards none. [host]",
    ),
]
_DnsRebinding = Annotated[
    str | None,
    typer.Option(
        metavar="WHETHER",
        help="Answers of resolvers with private addresses for public names: 'allow' or 'refuse' (DNS rebinding); a "
        "domain with a resolver of its own may have such addresses. [allow]",
    ),
]
_Http = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS:PORT",
        help="Where to serve the page and the metrics, such as 127.0.0.1:9820; beyond loopback with a token. [off]",
    ),
]
_HttpEndpointTraffic = Annotated[
    bool | None,
    typer.Option("--http-endpoint-traffic", help="Have the traffic of each endpoint in the metrics. [off]"),
]
_SocketGroup = Annotated[
    str | None,
    typer.Option(
        metavar="GROUP",
        help="Group whose members may use the API, as with Docker's group: they are as good as root. [root alone]",
    ),
]
_LogFormat = Annotated[str | None, typer.Option(metavar="FORMAT", help="console or json. [console]")]
_LogLevel = Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error. [info]")]


def serve(
    state_dir: _StateDir = None,
    run_dir: _RunDir = None,
    plugin_dir: _PluginDir = None,
    driver_name: _DriverName = None,
    store: _Store = None,
    etcd_ca: _EtcdCa = None,
    etcd_cert: _EtcdCert = None,
    etcd_key: _EtcdKey = None,
    etcd_for_containers: _EtcdForContainers = None,
    cluster_allow: _ClusterAllow = None,
    docker_host: _DockerHost = None,
    host_name: _HostName = None,
    vtep: _Vtep = None,
    address_pool: _AddressPool = None,
    forward_others: _ForwardOthers = None,
    dns_domain: _DnsDomain = None,
    dns_upstream: _DnsUpstream = None,
    dns_special: _DnsSpecial = None,
    dns_rebinding: _DnsRebinding = None,
    http: _Http = None,
    http_endpoint_traffic: _HttpEndpointTraffic = None,
    socket_group: _SocketGroup = None,
    log_format: _LogFormat = None,
    log_level: _LogLevel = None,
) -> None:
    """Run the daemon in the foreground.

    Each option can also be set in the environment, as NETPLUG_STATE_DIR and so on, or in /etc/netplug/netplug.toml, as
    state_dir and so on (NETPLUG_CONFIG names another file). etcd's user and password have no flag, since every user of
    the host could read it: set NETPLUG_ETCD_USER and NETPLUG_ETCD_PASSWORD. The daemon tells systemd when it is ready.
    SIGTERM stops it; containers stay connected. SIGHUP has it read the settings again; the log says what needs a
    restart.
    """
    _serve(dict(locals()))  # each parameter has the name of its setting


def _serve(flags: dict[str, object]) -> None:
    _structlog_alone()
    from netplug.config import load  # noqa: PLC0415 - client commands do not wait for the daemon's imports
    from netplug.errors import NetplugError  # noqa: PLC0415
    from netplug.errors.redaction import hide_arguments  # noqa: PLC0415

    hide_arguments()
    try:
        settings = load(**flags)
    except NetplugError as exc:
        from netplug.daemon.refusing import refuse_waiting  # noqa: PLC0415
        from netplug.daemon.systemd import inherited_sockets  # noqa: PLC0415

        refuse_waiting(inherited_sockets(), exc.message)
        raise CliError(USAGE, exc.message, hint=exc.hint) from None
    _refuse_without_rights()
    gc.disable()  # nearly all objects of the start stay; the daemon enables it when it has started
    try:
        from netplug.daemon.life import run  # noqa: PLC0415

        run(settings, partial(load, **flags))
    except NetplugError as exc:
        code = {"invalid": USAGE, "internal": NO}.get(exc.kind, UNREACHABLE)
        raise CliError(code, exc.message, hint=exc.hint) from None
    finally:
        gc.enable()


def _refuse_without_rights() -> None:
    """Refuse a user without the capabilities for networks and namespaces (capabilities(7)): it would fail later."""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    granted = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    missing = [name for name, number in _NEEDED.items() if not granted & 1 << number]
    if missing:
        words = "netplug serve needs root" if os.geteuid() else f"netplug serve lacks {' and '.join(missing)}"
        raise CliError(NO, f"{words}: it creates links, rules and sockets in namespaces", hint="sudo netplug serve")


def _structlog_alone() -> None:
    """Load structlog without rich, which costs 4 MB: tracebacks in the log are plain (`netplug.log`)."""
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # makes the import fail (importlib)
    try:
        import structlog  # noqa: F401, PLC0415
    finally:
        del sys.modules["rich"]
