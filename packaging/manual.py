"""What man pages and reference say beside the commands: settings, exit codes, environment and files."""

from dataclasses import dataclass
from typing import Any, get_origin

from netplug import cli
from netplug.cli.command_tree import Option, commands
from netplug.config import DEFAULT_FILE, Settings
from netplug.daemon.reloading import AT_RUN_TIME

EXIT_CODES = {
    cli.OK: "Success.",
    cli.NO: "The request was refused, the answer is no, or differences were found.",
    cli.USAGE: "Wrong usage: a command, an option or a value.",
    cli.UNREACHABLE: "The daemon or its store cannot be reached.",
    cli.INTERRUPTED: "Interrupted by Ctrl-C.",
    cli.PIPE_CLOSED: "The reader of the output has closed it.",
}
ENVIRONMENT = {
    "NETPLUG_RUN_DIR": "Folder of the daemon's sockets, for commands, CNI executables and the daemon alike.",
    "NETPLUG_CONFIG": f"File of the daemon's settings, instead of {DEFAULT_FILE}.",
    "NETPLUG_SETTING": "Value of a setting of the daemon, such as NETPLUG_STATE_DIR; see netplug.toml(5).",
    "NETPLUG_LAB_DIR": "Folder of the labs' files.",
    cli.DEBUG: "With any value, an internal error of a command shows its traceback.",
}
FILES = {
    str(DEFAULT_FILE): "Settings of the daemon, see netplug.toml(5).",
    "/var/lib/netplug/netplug.db": "Networks, endpoints and leases of this host (SQLite).",
    "/run/netplug/netplug.sock": "Socket of the REST API, which the commands use.",
    "/run/netplug/cni.sock": "Socket for CNI executables and the netavark plugin.",
    "/run/docker/plugins/pynet.sock": "Socket for dockerd.",
}
EXAMPLES = {
    "Run the daemon, then a container in a network of its own, with a published port:": (
        "netplug serve &",
        "docker network create -d pynet blue",
        "docker run -d --name web --network blue -p 8080:80 busybox httpd -f -h /etc",
    ),
    "Attach a network namespace to the same network, and ask for the container's name there:": (
        "ip netns add lab",
        "netplug attach blue --netns lab --name lab",
        "netplug dns query web --network blue",
    ),
    "Find out why a connection fails, and what is wrong with the host:": (
        "netplug trace lab web:80",
        "netplug doctor",
    ),
    "Compare the kernel with what was asked for:": ("netplug diff",),
}
"""Commands for netplug(1), by what they are for."""
WITHOUT_FLAG = {
    "etcd_user": ("NAME", "User of etcd."),
    "etcd_password": ("PASSWORD", "Password of that user. Every user of the host could read a flag, so there is none."),
}
"""Settings that have no flag of `serve`: their values' names and what they are."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of the daemon.

    `flag` is empty without one. `kind`: the TOML type of its value. `reloaded`: a reload of the daemon changes it.
    """

    name: str
    flag: str
    environment: str
    metavar: str
    kind: str
    help: str
    default: str
    reloaded: bool


def settings() -> tuple[Setting, ...]:
    """Return the settings of the daemon, in the order of `netplug.config.Settings`."""
    serve = next(it for it in commands().commands if it.path[-1] == "serve")
    flags = {option.name: option for option in serve.options}
    return tuple(_setting(name, flags.get(name)) for name in Settings.model_fields)


def _setting(name: str, option: Option | None) -> Setting:
    field = Settings.model_fields[name]
    text, _, said = (option.help if option else "").rpartition(" [")  # "…: what it is. [default]"
    metavar, meaning = (option.metavar, text or option.help) if option else WITHOUT_FLAG[name]
    default = said.rstrip("]") if text else ""
    flag = option.flags[-1] if option else ""
    return Setting(
        name, flag, f"NETPLUG_{name.upper()}", metavar, _kind(field.annotation), meaning, default, name in AT_RUN_TIME
    )


def _kind(annotation: Any) -> str:
    """Return the TOML type of a setting."""
    if get_origin(annotation) is tuple:
        return "array of strings"
    return "boolean" if annotation is bool else "string"
