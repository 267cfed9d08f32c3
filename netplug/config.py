"""Settings of the daemon: a flag overrides the environment, the environment the file, the file the default.

A setting has the same name everywhere: flag `--state-dir`, environment `NETPLUG_STATE_DIR`, key `state_dir` in
`/etc/netplug/netplug.toml` (`NETPLUG_CONFIG` names another file). The daemon refuses to start with an invalid value, in
one line that names the value's source.
"""

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from netplug.dns.forward_rules import Rule
from netplug.dns.wire import ROOT, to_wire
from netplug.errors import NetplugError
from netplug.errors.json import malformed
from netplug.errors.redaction import without_users, word_without_users
from netplug.errors.validation import shown, wrong
from netplug.setting_values import AddressPool, address_and_port, check_socket, group_id, subnet_or_link
from netplug.store.access import SCHEME, EtcdAccess, without_password

DEFAULT_FILE = Path("/etc/netplug/netplug.toml")
API_SOCKET = "netplug.sock"
CNI_SOCKET = "cni.sock"
_PREFIX = "NETPLUG_"
_PLUGIN_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_MANAGED_NAME = re.compile(r"[a-z0-9][a-z0-9_.:/-]*:[A-Za-z0-9_][A-Za-z0-9_.-]*")  # pynet:latest
_DOCKERS_DRIVERS = frozenset({"bridge", "host", "none", "null", "macvlan", "ipvlan", "overlay"})
_RESTART = "systemctl restart netplug"
_HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")


class Settings(BaseModel):
    """The settings of `netplug serve`. Directories are made absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    state_dir: Path = Path("/var/lib/netplug")
    run_dir: Path = Path("/run/netplug")
    driver_name: str = "pynet"
    plugin_dir: Path = Path("/run/docker/plugins")
    store: str = "sqlite"
    """`sqlite`, or `etcd://…` for the state that hosts share; each host keeps its own in SQLite in any case."""
    etcd_ca: Path | None = None
    etcd_cert: Path | None = None
    etcd_key: Path | None = None
    etcd_user: str = ""
    etcd_password: SecretStr = SecretStr("")
    etcd_for_containers: bool = False
    """Whether containers may connect to the store's endpoints."""
    cluster_allow: tuple[str, ...] = ()
    """Subnets beyond private ones, and bridges of this host, that networks defined by other hosts may have."""
    docker_host: str = "unix:///var/run/docker.sock"
    host_name: str = ""
    vtep: str = ""
    """Address to which other hosts send their tunnels, or a link that has it; empty: the address towards the store."""
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    address_pool: tuple[AddressPool, ...] = ()
    forward_others: bool = False
    """Whether the host forwards between links of others too, if netplug turned IP forwarding on."""
    dns_domain: str = "netplug.internal"
    dns_upstream: tuple[str, ...] = ()
    dns_special: Literal["host", "inside"] = "host"
    """Whether special-use names below the host's search list are forwarded to the host's resolvers."""
    dns_rebinding: Literal["allow", "refuse"] = "allow"
    """Whether answers of resolvers may have private addresses for public names."""
    http: str = ""
    """Address and port of the page and the metrics; empty: none."""
    http_endpoint_traffic: bool = False
    """Whether the metrics have each endpoint's traffic; a host with many containers has many of these."""
    socket_group: str = ""
    """Group whose members may use the API, by name or number; empty: none."""

    @property
    def dns_rules(self) -> tuple[Rule, ...]:
        """Resolvers for external names."""
        return tuple(map(Rule.parse, self.dns_upstream))

    @property
    def http_at(self) -> tuple[IPv4Address | IPv6Address, int] | None:
        """Address and port of the page; None without one."""
        return address_and_port(self.http) if self.http else None

    @property
    def database(self) -> Path:
        """File of this host's store."""
        return self.state_dir / "netplug.db"

    @property
    def api_socket(self) -> Path:
        """Socket of the API, for client commands."""
        return self.run_dir / API_SOCKET

    @property
    def socket_gid(self) -> int | None:
        """Id of the group whose members may use the API; None without one."""
        return group_id(self.socket_group) if self.socket_group else None

    @property
    def cni_socket(self) -> Path:
        """Socket for CNI executables."""
        return self.run_dir / CNI_SOCKET

    @property
    def managed(self) -> bool:
        """Whether this is a managed plugin of Docker, which names it with a tag."""
        return ":" in self.driver_name

    @property
    def restart(self) -> str:
        """Command that restarts the daemon."""
        name = self.driver_name
        return f"docker plugin disable -f {name} && docker plugin enable {name}" if self.managed else _RESTART

    @property
    def restart_hint(self) -> str:
        """What to do if only a new start helps, and what that costs."""
        return f"{self.restart}; containers stay connected"

    @property
    def host_root(self) -> Path:
        """Root of the host's files; a managed plugin sees them as those of the host's process 1 (proc_pid_root(5))."""
        return Path("/proc/1/root" if self.managed else "/")

    @property
    def plugin_socket(self) -> Path:
        """Socket for dockerd; its file name is the driver's name, or that in the managed plugin's config.json."""
        return self.plugin_dir / f"{'pynet' if self.managed else self.driver_name}.sock"

    @property
    def etcd(self) -> EtcdAccess | None:
        """Access to the shared store; None without one."""
        if self.store == "sqlite":
            return None
        access = EtcdAccess.parse(self.store)
        if self.etcd_user:
            access = replace(access, user=self.etcd_user, password=self.etcd_password.get_secret_value())
        return replace(access, ca=self.etcd_ca, cert=self.etcd_cert, key=self.etcd_key)

    @field_validator("state_dir", "run_dir", "plugin_dir")
    @classmethod
    def _absolute(cls, value: Path, info: ValidationInfo) -> Path:
        path = value.absolute()
        if info.field_name == "run_dir":
            check_socket(path / API_SOCKET)
        if info.field_name == "plugin_dir":
            check_socket(path / f"{info.data.get('driver_name', '')}.sock")
        return path

    @field_validator("driver_name")
    @classmethod
    def _plugin_name(cls, value: str) -> str:
        if value in _DOCKERS_DRIVERS:
            raise ValueError("is the name of a built-in driver of docker")
        if not _PLUGIN_NAME.fullmatch(value) and not _MANAGED_NAME.fullmatch(value):
            raise ValueError("is not a plugin name: a-z and 0-9, and after the first character also _ . -")
        return value

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str) -> str:
        if value == "sqlite":
            return value
        if not value.startswith(SCHEME):
            raise ValueError("is neither sqlite nor etcd://host:port[,host:port]…")
        EtcdAccess.parse(value)
        return value

    @field_validator("etcd_ca", "etcd_cert", "etcd_key")
    @classmethod
    def _tls_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        given = info.data
        if value is None:
            if info.field_name == "etcd_key" and given.get("etcd_cert"):
                raise ValueError(f"the key of etcd_cert {str(given['etcd_cert'])!r} is missing")
            return None
        _check_shared(given)
        if info.field_name != "etcd_ca" and not given.get("etcd_ca"):
            raise ValueError("has no effect without etcd_ca, which enables TLS")
        if info.field_name == "etcd_key" and not given.get("etcd_cert"):
            raise ValueError("has no effect without etcd_cert")
        if not value.is_file():
            raise ValueError("is not a file")
        return value.absolute()

    @field_validator("etcd_user")
    @classmethod
    def _user(cls, value: str, info: ValidationInfo) -> str:
        if value:
            access = _check_shared(info.data)
            if access and access.user:
                raise ValueError("is also given in the store's URL")
        return value

    @field_validator("etcd_password")
    @classmethod
    def _password(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if "etcd_user" in info.data and bool(value) != bool(info.data["etcd_user"]):
            raise ValueError("etcd_user and etcd_password must be set together")
        return value

    @field_validator("docker_host")
    @classmethod
    def _docker_socket(cls, value: str) -> str:
        path = value.removeprefix("unix://")
        if value != "none" and (path == value or not path.startswith("/")):
            raise ValueError("is neither unix:///path nor none")
        check_socket(Path(path))
        return value

    @field_validator("vtep")
    @classmethod
    def _address_or_link(cls, value: str, info: ValidationInfo) -> str:
        if value:
            _check_shared(info.data)
        if not re.fullmatch(r"[^\s/%]{0,45}", value):
            raise ValueError("is neither an address nor the name of a link")
        return value

    @field_validator("host_name")
    @classmethod
    def _name_of_host(cls, value: str) -> str:
        name = value or socket.gethostname()
        if not _HOST_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a host name")
        return name

    @field_validator("log_format", "log_level", "dns_special", "dns_rebinding", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("dns_domain")
    @classmethod
    def _domain(cls, value: str) -> str:
        if to_wire(value) == ROOT:
            raise ValueError("is the root zone: netplug would serve all names")
        return value.lower().removesuffix(".")

    @field_validator("dns_upstream", mode="before")
    @classmethod
    def _upstreams(cls, value: object) -> tuple[str, ...]:
        """Parse a list of texts, or one text with upstreams separated by spaces (environment)."""
        texts = value.split() if isinstance(value, str) else value
        if not isinstance(texts, list | tuple):
            raise ValueError("is not a list of ADDRESS[#PORT] or DOMAIN=ADDRESS[#PORT]")
        for text in texts:
            Rule.parse(str(text))
        return tuple(map(str, texts))

    @field_validator("cluster_allow", mode="before")
    @classmethod
    def _allowed(cls, value: object) -> tuple[str, ...]:
        """Parse a list of texts, or one text with items separated by spaces (environment)."""
        texts = value.split() if isinstance(value, str) else value
        if not isinstance(texts, list | tuple):
            raise ValueError("is not a list of CIDR or names of bridges")
        for text in texts:
            subnet_or_link(str(text))
        return tuple(map(str, texts))

    @field_validator("http")
    @classmethod
    def _listening(cls, value: str) -> str:
        if value:
            address_and_port(value)
        return value

    @field_validator("socket_group")
    @classmethod
    def _group(cls, value: str) -> str:
        if value:
            group_id(value)
        return value

    @field_validator("address_pool", mode="before")
    @classmethod
    def _pools(cls, value: object) -> tuple[AddressPool, ...]:
        """Parse a list of texts, or one text with pools separated by spaces (environment)."""
        texts = value.split() if isinstance(value, str) else value
        if not isinstance(texts, list | tuple):
            raise ValueError("is not a list of base=CIDR,size=BITS")
        pools = tuple(item if isinstance(item, AddressPool) else AddressPool.parse(str(item)) for item in texts)
        for one, other in combinations(pools, 2):
            if one.base.overlaps(other.base):
                raise ValueError(f"address pool {str(other)!r} overlaps {str(one)!r}")
        return pools


_SHOWN = 300
"""Characters of a wrong value in a message, and of the reason."""


def settings_file() -> Path:
    """Return the file that `NETPLUG_CONFIG` names, or the default."""
    return Path(os.environ.get(f"{_PREFIX}CONFIG") or DEFAULT_FILE)


def load(**flags: object) -> Settings:
    """Return the settings; a flag that is None or an empty list counts as not given.

    Raises:
        NetplugError: "invalid"; the message names setting, source and value in one line.
    """
    given = {name: value for name, value in flags.items() if value is not None and value not in ([], ())}
    path = settings_file()
    try:
        if path != DEFAULT_FILE and not path.is_file():
            raise NetplugError("invalid", f"settings file {path} of {_PREFIX}CONFIG does not exist")
        return Settings(**_in_file(path) | _in_environment() | given)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        raise _explain(errors[0], given, path) from exc
    except (OSError, ValueError, RecursionError) as exc:  # ValueError: no TOML, or not UTF-8
        reason = exc.strerror if isinstance(exc, OSError) else malformed(exc)
        raise NetplugError("invalid", f"settings file {path} cannot be read: {_line(reason or '')}") from exc


def _explain(error: ErrorDetails, flags: Mapping[str, object], path: Path) -> NetplugError:
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        import difflib  # noqa: PLC0415 - takes 3 ms, and only a mistake needs it

        near = difflib.get_close_matches(name.replace("-", "_"), Settings.model_fields, 1)
        return NetplugError(
            "invalid",
            f"unknown setting {name!r} {'as a flag' if name in flags else f'in {path}'}",
            hint=f"did you mean {near[0]}" if near else "",
        )
    value = str(error["input"]) if isinstance(error["input"], Path) else error["input"]
    if name == "etcd_password":
        value = "***"
    elif name == "store":
        value = without_password(str(value))
    reason = wrong({**error, "input": value}).removesuffix(f", not {shown(value)}")
    said = (
        "not given"
        if value is None
        else repr(word_without_users(value)[:_SHOWN])
        if isinstance(value, str)
        else shown(value)
    )
    words = f"setting {name} ({_source(name, flags, path)}) is {said}: {_line(reason)[:_SHOWN]}"
    return NetplugError("invalid", without_users(words))


def _in_environment() -> dict[str, Any]:
    """Return the settings in variables of any case; an empty one is absent."""
    given = {key.upper(): value for key, value in os.environ.items() if value}
    variables = {name: _variable(name) for name in Settings.model_fields}
    return {name: given[variable] for name, variable in variables.items() if variable in given}


def _in_file(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _variable(name: str) -> str:
    return f"{_PREFIX}{name}".upper()


def _source(name: str, flags: Mapping[str, object], path: Path) -> str:
    if name in flags:
        return f"--{name.replace('_', '-')}"
    if name in _in_environment():
        return _variable(name)
    return str(path) if name in _in_file(path) else "default"


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].lower() + text[1:]


def _check_shared(given: Mapping[str, Any]) -> EtcdAccess | None:
    """Refuse etcd settings without an etcd store; None if the store itself was refused, whose error comes first."""
    if "store" not in given:
        return None
    if given["store"] == "sqlite":
        raise ValueError("has no effect with store sqlite")
    return EtcdAccess.parse(given["store"])
