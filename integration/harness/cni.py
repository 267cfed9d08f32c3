"""A CNI runtime: runs the plugins of a list as libcni does, and keeps results as it does."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from .host import Host
from .netplugd import RUN_DIR, Netplug
from .scoped import Namespace, namespace

BIN_DIR = "/run/cni-bin"
FOREIGN_DIR = "/usr/lib/cni"
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

CAPABILITIES = ("aliases", "bandwidth", "cgroupPath", "dns", "ipRanges", "ips", "mac", "portMappings")
PYNET: dict[str, Any] = {"type": "pynet", "capabilities": dict.fromkeys(CAPABILITIES, True)}
RANGES4 = [[{"subnet": "10.91.0.0/24"}]]
RANGES46 = [*RANGES4, [{"subnet": "fd00:91::/64"}]]

_numbers = count(1)


class PluginError(AssertionError):
    """A plugin answered with an error object."""

    def __init__(self, command: str, answer: dict[str, Any]) -> None:
        super().__init__(f"{command}: {answer}")
        self.code: int = answer["code"]
        self.msg: str = answer["msg"]
        self.text = f"{answer['msg']}: {answer.get('details', '')}"


@dataclass
class Attached:
    """One container's interface in a network, with what a runtime remembers of it."""

    container: str
    netns: str
    ifname: str
    args: str
    runtime: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def addresses(self) -> list[str]:
        """Its addresses without prefix lengths."""
        if "ips" in self.result:
            found = [ip["address"] for ip in self.result["ips"]]
        else:
            found = [self.result[key]["ip"] for key in ("ip4", "ip6") if key in self.result]
        return [address.partition("/")[0] for address in found]

    @property
    def ip(self) -> str:
        (address,) = self.addresses
        return address


class Runtime:
    """Runs a list of plugins on a host. `env`: beside the CNI variables, such as where netplug keeps its state."""

    def __init__(
        self,
        host: Host,
        *plugins: dict[str, Any],
        version: str = "1.0.0",
        name: str = "",
        env: dict[str, str] | None = None,
        path: Sequence[str] = (BIN_DIR, FOREIGN_DIR),
    ) -> None:
        self.host = host
        self.name = name or f"cni{next(_numbers)}"
        self.plugins = plugins
        self.version = version
        self.env = {"NETPLUG_RUN_DIR": RUN_DIR} | (env or {})
        self.path = path

    def add(
        self,
        netns: Namespace | str,
        *,
        container: str = "",
        ifname: str = "eth0",
        args: str = "",
        runtime: dict[str, Any] | None = None,
    ) -> Attached:
        """ADD a container; when that fails it is left to the caller to DEL, as it is to a runtime."""
        where = netns if isinstance(netns, str) else f"/run/netns/{netns.name}"
        it = Attached(container or f"c{next(_numbers)}", where, ifname, args, runtime or {})
        previous: dict[str, Any] = {}
        for plugin in self.plugins:
            previous = self.run("ADD", plugin, it, previous)
        it.result = previous
        return it

    def delete(self, it: Attached, *, netns: str | None = None, bare: bool = False) -> None:
        """DEL it. `netns`: another one than it was. `bare`: without previous result and runtimeConfig."""
        gone = Attached(
            it.container, it.netns if netns is None else netns, it.ifname, it.args, {} if bare else it.runtime
        )
        previous = {} if bare or self.version < "0.4.0" else it.result
        for plugin in reversed(self.plugins):
            self.run("DEL", plugin, gone, previous)

    def check(self, it: Attached) -> None:
        for plugin in self.plugins:
            self.run("CHECK", plugin, it, it.result)

    def gc(self, *valid: Attached) -> None:
        """GC, with those that are still there."""
        listed = [{"containerID": it.container, "ifname": it.ifname} for it in valid]
        for plugin in self.plugins:
            self.run("GC", plugin | {"cni.dev/valid-attachments": listed}, None, {})

    def status(self) -> None:
        for plugin in self.plugins:
            self.run("STATUS", plugin, None, {})

    def run(
        self, command: str, plugin: dict[str, Any], it: Attached | None, previous: dict[str, Any]
    ) -> dict[str, Any]:
        """Run one plugin and return its result.

        Raises:
            PluginError: it answered with an error.
        """
        config = {"cniVersion": self.version, "name": self.name} | plugin
        env = {"CNI_COMMAND": command, "CNI_PATH": ":".join(self.path)} | self.env
        if it is not None:
            env |= {"CNI_CONTAINERID": it.container, "CNI_NETNS": it.netns, "CNI_IFNAME": it.ifname}
            env |= {"CNI_ARGS": it.args} if it.args else {}
            declared = {key for key, wanted in plugin.get("capabilities", {}).items() if wanted}
            config |= {"runtimeConfig": {key: value for key, value in it.runtime.items() if key in declared}}
        if previous:
            config |= {"prevResult": previous}
        return execute(self.host, self._find(plugin["type"]), json.dumps(config), env)

    def _find(self, kind: str) -> str:
        return next(f"{folder}/{kind}" for folder in self.path if self.host.path(f"{folder}/{kind}").exists())


def execute(host: Host, program: str, stdin: str, env: dict[str, str]) -> dict[str, Any]:
    """Run an executable as a runtime does and return what it printed.

    Raises:
        PluginError: it answered with an error.
    """
    done = host.run([program], check=False, stdin=stdin, env=env)
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    if done.returncode:
        assert "code" in answer, f"{env.get('CNI_COMMAND')}: exit {done.returncode}: {done.stdout}{done.stderr}"
        raise PluginError(env.get("CNI_COMMAND", ""), answer)
    assert "code" not in answer, answer
    return answer


@contextmanager
def cni_list(host: Host, netplug: Netplug, *plugins: dict[str, Any], **options: Any) -> Iterator[Runtime]:
    """A runtime with a list; the network that its ADDs made is gone afterwards."""
    it = Runtime(host, *plugins, **options)
    try:
        yield it
    finally:
        if any(net["name"] == it.name and net["front_end"] == "cni" for net in netplug.json("network", "ls")):
            version, it.version = it.version, "1.1.0"
            it.gc()
            it.version = version


@contextmanager
def cni_attached(it: Runtime, **options: Any) -> Iterator[tuple[Namespace, Attached]]:
    """A container of a list, and what its ADD said."""
    with namespace(it.host) as netns:
        one = it.add(netns, **options)
        try:
            yield netns, one
        finally:
            it.delete(one)


def own_ipam(ranges: Any, **more: Any) -> dict[str, Any]:
    """Return what a configuration says to have addresses of our own allocator."""
    return {"ipam": {"type": "netplug-ipam", "ranges": ranges} | more}


def cni_refusal(it: Runtime, **options: Any) -> PluginError:
    """Return what a failing ADD answers; nothing is left of it, so that no DEL is needed."""
    with namespace(it.host) as netns:
        try:
            it.add(netns, **options)
        except PluginError as error:
            return error
    raise AssertionError(f"ADD to {it.name} did not fail")


def links_of(netns: Namespace) -> list[str]:
    return sorted(link["ifname"] for link in json.loads(netns.exec("ip", "-j", "link")))


def addresses_of(netns: Namespace, ifname: str = "eth0") -> set[str]:
    found = json.loads(netns.exec("ip", "-j", "addr", "show", ifname))[0]["addr_info"]
    return {f"{it['local']}/{it['prefixlen']}" for it in found if it["scope"] == "global"}


def default_gateway(netns: Namespace, *family: str) -> str:
    words = netns.exec("ip", *family, "route", "show", "default").split()
    return words[2] if words else ""
