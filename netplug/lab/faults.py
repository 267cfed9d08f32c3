"""Fault injection in a lab, and its reversal.

The switch injects faults of the network: it drops frames silently, and the links of the hosts stay up.
"""

from dataclasses import dataclass

from netplug.errors import NetplugError
from netplug.lab.build import start_daemon, start_etcd
from netplug.lab.file import ETCD
from netplug.lab.node import until
from netplug.lab.state import SWITCH, State
from netplug.lab.underlay import port

_END_TIMEOUT_S = 20.0
_TABLE = "lab-faults"
KINDS = {
    "cut": "HOST [OTHER]: drop all frames of a host, or between two hosts",
    "drop": "BYTES: drop larger packets, without an error to the sender",
    "stop": "HOST: stop its daemon (SIGTERM)",
    "kill": "HOST: kill its daemon (SIGKILL)",
    "hang": "HOST: freeze its daemon (SIGSTOP)",
    "wipe": "etcd: delete all data of etcd, and start it again",
    "mend": "undo all faults",
}
"""HOST may be `etcd` in a lab with etcd."""


@dataclass(frozen=True, slots=True)
class Process:
    """The daemon of a host, or etcd."""

    state: State
    host: str

    @property
    def name(self) -> str:
        return ETCD if self.host == ETCD else "netplug"

    @property
    def pid(self) -> int:
        return self.state.members[self.host].processes[self.name]

    def signal(self, name: str) -> None:
        """Send a signal that ends or freezes it, and wait for the effect."""
        node, pid = self.state.node(self.host), self.pid
        node.signal(pid, name)
        if not until(lambda: not node.lives(pid) or (name == "STOP" and node.frozen(pid)), _END_TIMEOUT_S):
            words = f"{self.name} of {self.host} is still running {_END_TIMEOUT_S:g} s after SIG{name}"
            raise NetplugError("unavailable", words)


def fault(state: State, kind: str, arguments: list[str]) -> None:
    """Inject a fault.

    Raises:
        NetplugError: "invalid": unknown kind or wrong arguments; "not_found": unknown host.
    """
    if kind not in KINDS:
        raise NetplugError("invalid", f"unknown fault {kind!r}", hint=f"one of {', '.join(KINDS)}")
    least, most = {"cut": (1, 2), "mend": (0, 0)}.get(kind, (1, 1))
    if not least <= len(arguments) <= most:
        raise NetplugError("invalid", f"fault {kind} takes {KINDS[kind]}")
    if kind == "drop":
        _drop(state, arguments[0])
    elif kind == "mend":
        mend(state)
        return
    else:
        for name in arguments:
            state.node(name)
        _break(state, kind, arguments)
    state.faults.append(" ".join((kind, *arguments)))
    state.save()


def _break(state: State, kind: str, hosts: list[str]) -> None:
    if kind == "cut":
        _cut(state, hosts)
        return
    if kind == "wipe":
        if hosts != [ETCD]:
            raise NetplugError("invalid", f"fault wipe takes {KINDS['wipe']}")
        node = state.node(ETCD)
        Process(state, ETCD).signal("KILL")
        node.run("rm", "-rf", str(node.folder / "data"))
        start_etcd(state)
        return
    name = {"stop": "TERM", "kill": "KILL", "hang": "STOP"}[kind]
    Process(state, hosts[0]).signal(name)


def _cut(state: State, hosts: list[str]) -> None:
    one, *others = (port(state.lab, name) for name in hosts)
    if others:
        rules = [f"iifname {one} oifname {others[0]} drop", f"iifname {others[0]} oifname {one} drop"]
    else:
        rules = [f"iifname {one} drop", f"oifname {one} drop"]
    _rules(state, rules)


def _drop(state: State, size: str) -> None:
    if not size.isdecimal() or not 68 <= int(size) <= 65535:
        raise NetplugError("invalid", f"fault drop takes {KINDS['drop']}, from 68 to 65535, not {size!r}")
    for name in state.lab.hosts:
        # Without segmentation offload, the switch sees packets as they would be on a cable.
        state.node(name).script("ip link set eth0 gso_max_segs 1")
    _rules(state, [f"meta length > {size} drop"])


def _rules(state: State, rules: list[str]) -> None:
    table = f"add table bridge {_TABLE}; add chain bridge {_TABLE} forward {{ type filter hook forward priority 0; }};"
    rules = [f"add rule bridge {_TABLE} forward {rule};" for rule in rules]
    state.node(SWITCH).run("nft", "-f", "-", stdin="\n".join((table, *rules)).encode())


def mend(state: State) -> None:
    """Undo all faults, and start daemons that are not running."""
    for name, member in state.members.items():
        for pid in member.processes.values():
            state.node(name).signal(pid, "CONT")
    switch = state.node(SWITCH)
    switch.run("nft", "-f", "-", stdin=f"add table bridge {_TABLE}; delete table bridge {_TABLE};".encode())
    for name in state.lab.hosts:
        state.node(name).script("ip link set eth0 gso_max_segs 65535")
    if ETCD in state.members and not state.node(ETCD).lives(state.members[ETCD].processes[ETCD]):
        start_etcd(state)
    for name in state.lab.hosts:
        start_daemon(state, name)
    state.faults.clear()
    state.save()
