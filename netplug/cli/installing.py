"""`netplug install-service` and `netplug uninstall`. What they do needs the daemon's modules, which help does not."""

from typing import Annotated

import typer

_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")]
_Force = Annotated[
    bool, typer.Option("--force", help="Go on while containers are attached: they lose their networks at once.")
]
_Purge = Annotated[
    bool, typer.Option("--purge", help="Remove also the records of networks and addresses, and the settings.")
]


def install_service(dry_run: _DryRun = False) -> None:
    """Install and start the service of systemd.

    For an installation by pip or pipx: packages of distributions bring the service. The command writes the units, files
    that keep NetworkManager and systemd-networkd from netplug's links, /etc/netplug/netplug.toml if it is missing, and
    the executables for CNI runtimes and podman; then it starts the service, also at each boot. Repeat it after an
    upgrade. 'netplug uninstall' takes all of it back.

    Exit code 0: the service runs, or would be started by systemd; 1: something is in the way.
    """
    from netplug.cli.service import install  # noqa: PLC0415

    install(dry_run=dry_run)


def uninstall(force: _Force = False, purge: _Purge = False) -> None:
    """Remove netplug from this host.

    The command stops the daemon, and removes what 'install-service' wrote, all links, rules, tables and sockets of
    netplug, and what 'dns host on' did; sysctls get back the values that they had. It works without a daemon too. The
    records in /var/lib/netplug stay: with them, a later installation builds the networks again. What stays is listed,
    with the reason.

    Exit code 0: done; 1: containers are attached, or something could not be removed.
    """
    from netplug.cli import uninstalling  # noqa: PLC0415

    uninstalling.uninstall(force=force, purge=purge)
