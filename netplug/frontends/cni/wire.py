"""CNI's protocol: environment, the common keys of the configuration, and the errors that a runtime understands.

Only keys that each command needs are read here, since DEL must succeed with whatever is left of a configuration.
`types` has the others.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from netplug.drivers.checked_texts import is_namespace
from netplug.drivers.codec import JsonObject
from netplug.drivers.link_names import is_link_name
from netplug.engine.host_services import NullRuntimes, Runtimes
from netplug.engine.records import Caller
from netplug.errors.json import malformed
from netplug.frontends.cni.shim import SPEC_VERSIONS

OWN_IPAM = "netplug-ipam"
_NOBODY = NullRuntimes()
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")


class Code(IntEnum):
    """Error codes of the specification (section 5), and from 100 on our own."""

    VERSION = 1
    UNSUPPORTED = 2
    ENVIRONMENT = 4
    DECODE = 6
    CONFIG = 7
    NETNS = 8
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    LIMITED = 51
    INTERNAL = 100
    EXISTS = 101
    FORBIDDEN = 102
    NOT_FOUND = 103
    WRONG = 104
    """CHECK found that something is missing or different."""


class CniError(Exception):
    """The answer of a plugin in place of a result."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(f"{msg}: {details}" if details else msg)
        self.code = code
        self.msg = msg
        self.details = details


class Command(StrEnum):
    """CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"


_SINCE = {Command.CHECK: "0.4.0", Command.GC: "1.1.0", Command.STATUS: "1.1.0"}
_NAMED = frozenset({Command.ADD, Command.DEL, Command.CHECK})


@dataclass(frozen=True, slots=True)
class Call:
    """One start of the executable. `name`: its file's name, `env`: its CNI variables, `stdin`: a configuration.

    `pid`: of its process; 0: not known. netavark gives the command as arguments: they are in `env` too, see
    `netplug.frontends.cni.shim`.
    """

    name: str
    env: Mapping[str, str]
    stdin: bytes
    pid: int = 0

    @property
    def netavark(self) -> str:
        """The command of netavark; empty if the caller is not netavark."""
        return self.env.get("NETAVARK_COMMAND", "")

    @property
    def verb(self) -> str:
        """The command, as the caller wrote it."""
        return self.netavark or self.env.get("CNI_COMMAND", "")

    @classmethod
    def parse(cls, data: bytes, pid: int = 0) -> "Call":
        """Read what `netplug.frontends.cni.shim` writes."""
        head, _, stdin = data.partition(b"\0\0")
        name, *words = head.decode(errors="replace").split("\0")
        return cls(name, dict(word.split("=", 1) for word in words if "=" in word), stdin, pid)

    def render(self) -> bytes:
        """Return what `parse` reads."""
        words = [self.name, *(f"{key}={value}" for key, value in self.env.items())]
        return "\0".join(words).encode(errors="surrogateescape") + b"\0\0" + self.stdin


@dataclass(frozen=True, slots=True)
class Reply:
    """What the executable prints on stdout and stderr, and its exit code."""

    code: int
    stdout: str = ""
    stderr: str = ""

    def render(self) -> bytes:
        """Return it as `netplug.frontends.cni.shim` reads it."""
        out = self.stdout.encode()
        return b"%d %d\n%s%s" % (self.code, len(out), out, self.stderr.encode())

    @classmethod
    def parse(cls, data: bytes) -> "Reply | None":
        """Read what `render` wrote; None if there is nothing, since the daemon died."""
        head, newline, rest = data.partition(b"\n")
        if not newline:
            return None
        code, length = map(int, head.split())
        return cls(code, rest[:length].decode(), rest[length:].decode())


_HOSTNAME = "NERDCTL_CNI_DHCP_HOSTNAME"
"""Argument with nerdctl's ``--hostname``, else the beginning of the container's id."""


@dataclass(frozen=True, slots=True)
class Args:
    """The known keys of CNI_ARGS."""

    ip: str = ""
    mac: str = ""
    pod: str = ""
    namespace: str = ""
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A call with a valid environment.

    `me`: the executable's name. `type`: the plugin of the configuration: `me`, or another one whose IPAM we are. `raw`:
    the configuration as it came. `caller`: the runtime. `labels`: nerdctl's of the container, which it sends to nobody.
    """

    command: Command
    me: str
    type: str
    version: str
    network: str
    raw: JsonObject
    container: str = ""
    ifname: str = ""
    netns: str = ""
    args: Args = field(default_factory=Args)
    env: Mapping[str, str] = field(default_factory=dict)
    caller: Caller = field(default_factory=Caller)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def ipam(self) -> str:
        """The IPAM plugin; empty if the configuration names none."""
        kind = self.get("ipam", "type")
        return kind if isinstance(kind, str) else ""

    @property
    def foreign_ipam(self) -> str:
        """The IPAM plugin if it is not ours."""
        return "" if self.ipam in {self.me, OWN_IPAM} else self.ipam

    def get(self, *path: str) -> Any:
        """Return the configuration's value under these keys, in upper or lower case; None if there is none."""
        found: Any = self.raw
        for key in path:
            found = _any_case(found, key) if isinstance(found, dict) else None
        return found


def _any_case(data: Mapping[str, Any], key: str) -> Any:
    if key in data:
        return data[key]
    return next((value for name, value in data.items() if name.lower() == key.lower()), None)


def read(call: Call, runtimes: Runtimes = _NOBODY) -> Request:
    """Check a call's environment and the common keys of its configuration. `runtimes`: tell who calls.

    Raises:
        CniError: codes 1, 4, 6, 7.
    """
    env = call.env
    try:
        command = Command(env.get("CNI_COMMAND", ""))
    except ValueError:
        raise CniError(Code.ENVIRONMENT, f"unknown CNI_COMMAND: {env.get('CNI_COMMAND', '')!r}") from None
    container = ifname = ""
    if command in _NAMED:
        container, ifname = _container(env), _ifname(env)
        if command is not Command.DEL and not env.get("CNI_NETNS"):
            raise CniError(Code.ENVIRONMENT, "required env variables [CNI_NETNS] missing")
        if (netns := env.get("CNI_NETNS", "")) and not is_namespace(netns):
            raise CniError(Code.ENVIRONMENT, f"invalid CNI_NETNS {netns[:80]!r}: not an absolute path")
    raw = _decode(call.stdin)
    version = _any_case(raw, "cniVersion") or "0.1.0"
    _check_version(version, command)
    network = _any_case(raw, "name")
    if not isinstance(network, str) or not _NAME.fullmatch(network) or len(network) > 128:
        raise CniError(Code.CONFIG, f"invalid network name {network!r}" if network else "missing network name")
    args = _args(env.get("CNI_ARGS", ""), strict=command is Command.ADD)
    kind = _any_case(raw, "type")
    return Request(
        command,
        call.name,
        kind if isinstance(kind, str) else call.name,
        version,
        network,
        raw,
        container,
        ifname,
        env.get("CNI_NETNS", ""),
        args,
        env,
        caller_of(call, runtimes),
        runtimes.annotations(call.pid, container) if args.hostname and command is not Command.DEL else {},
    )


def caller_of(call: Call, runtimes: Runtimes) -> Caller:
    """Return the runtime that calls."""
    return Caller(call.pid, runtimes.calling_runtime(call.pid)) if call.pid else Caller()


def _container(env: Mapping[str, str]) -> str:
    value = env.get("CNI_CONTAINERID", "")
    if not value:
        raise CniError(Code.ENVIRONMENT, "required env variables [CNI_CONTAINERID] missing")
    if not _NAME.fullmatch(value) or len(value) > 1024:
        raise CniError(Code.ENVIRONMENT, f"invalid CNI_CONTAINERID {value[:80]!r}")
    return value


def _ifname(env: Mapping[str, str]) -> str:
    value = env.get("CNI_IFNAME", "")
    if not value:
        raise CniError(Code.ENVIRONMENT, "required env variables [CNI_IFNAME] missing")
    if not is_link_name(value):
        raise CniError(Code.ENVIRONMENT, f"invalid CNI_IFNAME {value[:80]!r}: not a name of 1 to 15 characters")
    return value


def _decode(data: bytes) -> JsonObject:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise CniError(Code.DECODE, "the network configuration is not JSON", malformed(exc)) from None
    if not isinstance(raw, dict):
        raise CniError(Code.DECODE, "the network configuration is not a JSON object")
    return raw


def _check_version(version: object, command: Command) -> None:
    if version not in SPEC_VERSIONS:
        spoken = ", ".join(SPEC_VERSIONS)
        raise CniError(Code.VERSION, "incompatible CNI versions", f"config is {version!r}, plugin supports {spoken}")
    since = _SINCE.get(command, "")
    if since and SPEC_VERSIONS.index(str(version)) < SPEC_VERSIONS.index(since):
        raise CniError(Code.VERSION, f"config version does not allow {command}", f"{version} is older than {since}")


def _args(text: str, *, strict: bool) -> Args:
    """Read CNI_ARGS. As in the reference plugins, unknown keys are refused unless IgnoreUnknown is set."""
    pairs = dict(item.partition("=")[::2] for item in text.split(";") if item)
    lenient = pairs.pop("IgnoreUnknown", "").lower() in {"1", "true"} or not strict
    known = {"IP", "MAC", "GATEWAY", "K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"}
    known |= {_HOSTNAME}
    if not lenient and (unknown := sorted(pairs.keys() - known)):
        raise CniError(Code.ENVIRONMENT, f"CNI_ARGS: unknown args {unknown}")
    keys = ("IP", "MAC", "K8S_POD_NAME", "K8S_POD_NAMESPACE", _HOSTNAME)
    return Args(*(pairs.get(key, "") for key in keys))
