"""Firewalls that a host has before netplug's daemon starts, and what an administrator does with each of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import run

from .dockerd import dockerd_command
from .firewalld import UNPACKED as FIREWALLD
from .firewalld import Firewalld
from .host import Host
from .snapshot import XTABLES
from .ufw import UNPACKED as UFW
from .ufw import Ufw
from .unpacked import lay_over

_TOOLS = [f"{version}{tool}" for version in ("iptables", "ip6tables") for tool in ("", "-save", "-restore")]
_HIDDEN = "rm -f /usr/sbin/*tables-* /usr/sbin/*tables /usr/sbin/ipset /usr/local/sbin/*tables* /usr/local/sbin/ipset"
_UNBRIDGED = "sysctl -eqw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0"
"""Frames between neighbours do not come to the firewall; elsewhere they do, where the module br_netfilter is loaded."""
_ANSWERS = "INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
_OF_DOCKER = ("docker0", "br-+")
_NEIGHBOURS = "INPUT -p icmpv6 -j ACCEPT"


@dataclass(frozen=True)
class Environment:
    """What guards a host.

    `flavours`: of iptables; the first is that of the host's PATH, the last is Docker's. `docker`: arguments of a
    dockerd that runs before our daemon; None where none does. `flushes`: what takes rules of others away.
    """

    name: str
    flavours: tuple[str, ...] = ("nft",)
    docker: tuple[str, ...] | None = None
    flushes: tuple[str, ...] = ()
    needs: tuple[Path, ...] = ()

    def missing(self) -> str:
        """Return what this machine lacks for it; empty if nothing."""
        needed = (*map(_multi, self.flavours), *self.needs)
        return ", ".join(str(path) for path in needed if not path.exists())

    def prepare(self, host: Host) -> None:
        """Set it up on a host that has its links already."""
        if self.flavours:
            host.env["PATH"] = _path(host, self.flavours[0])

    def docker_env(self, host: Host) -> dict[str, str]:
        """Return what is different for a dockerd of the host."""
        return {"PATH": _path(host, self.flavours[-1])} if self.flavours else {}

    def drops(self, it: str) -> dict[str, tuple[str, str]]:
        """Return commands by which an administrator drops packets from and to an address, and takes that back."""
        found = {}
        for flavour in self.flavours:
            tool = f"iptables-{flavour}"
            of_docker = self.docker is not None and flavour == self.flavours[-1]
            for chain in ["FORWARD", *["DOCKER-USER"] * of_docker]:
                add, remove = (
                    [f"{tool} {do} {chain} {way} {it} -j DROP" for way in ("-s", "-d")] for do in ("-I", "-D")
                )
                found[f"{chain} of {tool}"] = "; ".join(add), "; ".join(remove)
        for priority in (-200, 0, 200):
            rules = [f"ip {way} {it} counter drop;" for way in ("saddr", "daddr")]
            chain = f"chain forward {{ type filter hook forward priority {priority}; {' '.join(rules)} }}"
            add_table = f"nft -f - <<END\ntable inet admin {{ {chain}; }}\nEND\n"
            found[f"a table with priority {priority}"] = add_table, "nft delete table inet admin"
        return found

    @contextmanager
    def input_denied(self, host: Host) -> Iterator[None]:
        """The host takes in only answers, by its policy in iptables, and what IPv6 needs for that."""
        rules = {f"iptables-{it}": (_ANSWERS,) for it in self.flavours}
        rules |= {f"ip6tables-{it}": (_ANSWERS, _NEIGHBOURS) for it in self.flavours}
        _sh(host, *(f"{tool} -A {rule}" for tool in rules for rule in rules[tool]))
        _sh(host, *(f"{tool} -P INPUT DROP" for tool in rules))
        try:
            yield
        finally:
            _sh(host, *(f"{tool} -P INPUT ACCEPT" for tool in rules))
            _sh(host, *(f"{tool} -D {rule}" for tool in rules for rule in rules[tool]))

    @contextmanager
    def kept(self, host: Host) -> Iterator[None]:
        """At the end of the block the rules of others are as before it."""
        tools = [f"{version}-{flavour}" for flavour in self.flavours for version in ("iptables", "ip6tables")]
        saved = {tool: host.output(f"{tool}-save") for tool in tools}
        tables = [line.removeprefix("table ") for line in host.output("nft", "list", "tables").splitlines()]
        others = {
            name: host.output("nft", "-s", "list", "table", *name.split()) for name in tables if name not in XTABLES
        }
        try:
            yield
        finally:
            for tool, rules in saved.items():
                host.run([f"{tool}-restore"], stdin=f"{rules}\n")
            for name, text in others.items():
                host.run(["nft", "-f", "-"], stdin=f"table {name}\ndelete table {name}\n{text}\n")


class _Both(Environment):
    """Docker's rules are in one flavour, those of the administrator, who drops what he does not know, in the other."""

    def prepare(self, host: Host) -> None:
        super().prepare(host)
        _sh(host, *(f"{version}-nft -P FORWARD DROP" for version in ("iptables", "ip6tables")))
        _sh(host, *(f"iptables-nft -A FORWARD {way} {link} -j ACCEPT" for way in ("-i", "-o") for link in _OF_DOCKER))


class _Bare(Environment):
    """Neither iptables nor ipset is there."""

    def prepare(self, host: Host) -> None:
        lay_over(host)
        _sh(
            host,
            _UNBRIDGED,
            _HIDDEN,
            "! command -v iptables ip6tables ipset iptables-save iptables-nft iptables-legacy",
        )

    @contextmanager
    def input_denied(self, host: Host) -> Iterator[None]:
        raise NotImplementedError("what another table drops nobody accepts")


class _Firewalld(Environment):
    def prepare(self, host: Host) -> None:
        super().prepare(host)
        Firewalld(host)
        _sh(host, *(f"firewall-cmd {it} --add-port=4789/udp" for it in ("", "--permanent")))

    @contextmanager
    def kept(self, host: Host) -> Iterator[None]:
        with super().kept(host):
            yield
        # It knows which zones and links it has rules for.
        _sh(host, "firewall-cmd --reload")


class _Ufw(Environment):
    def prepare(self, host: Host) -> None:
        super().prepare(host)
        _sh(host, _UNBRIDGED)
        ufw = Ufw(host)
        ufw("allow", "4789/udp")
        ufw("reload")  # makes rules that enabling does not

    def drops(self, it: str) -> dict[str, tuple[str, str]]:
        ways = [f"deny {way} {it}" for way in ("from", "to")]
        add, remove = ("; ".join(f"ufw route {do} {way}" for way in ways) for do in ("prepend", "delete"))
        return super().drops(it) | {"ufw": (add, remove)}

    @contextmanager
    def input_denied(self, host: Host) -> Iterator[None]:  # noqa: ARG002 - it is
        yield


class _DockerNft(Environment):
    def missing(self) -> str:
        return super().missing() or ("" if _knows_nftables() else "a dockerd with --firewall-backend=nftables")

    def prepare(self, host: Host) -> None:
        super().prepare(host)
        # It leaves that to the administrator.
        _sh(host, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")

    def docker_env(self, host: Host) -> dict[str, str]:
        return super().docker_env(host) | {"DOCKER_MIN_API_VERSION": "1.24"}  # the command may be an older one's

    def drops(self, it: str) -> dict[str, tuple[str, str]]:
        return {place: how for place, how in super().drops(it).items() if "DOCKER-USER" not in place}


_FLUSH_NFT, _FLUSH_LEGACY = (
    "; ".join(f"{version}-{flavour} -F; {version}-{flavour} -t nat -F" for version in ("iptables", "ip6tables"))
    for flavour in ("nft", "legacy")
)
_FLUSH_ALL = "nft flush ruleset"

ENVIRONMENTS = (
    Environment("iptables-nft", ("nft",), (), (_FLUSH_NFT, _FLUSH_ALL)),
    Environment("iptables-legacy", ("legacy",), (), (_FLUSH_LEGACY, _FLUSH_ALL)),
    _Both("iptables-both", ("nft", "legacy"), (), (_FLUSH_NFT, _FLUSH_LEGACY, _FLUSH_ALL)),
    _Bare("no-iptables", (), ("--iptables=false",), (_FLUSH_ALL,)),
    _Firewalld("firewalld", ("nft",), None, ("firewall-cmd --reload", _FLUSH_NFT, _FLUSH_ALL), (FIREWALLD,)),
    _Ufw("ufw", ("nft",), None, ("ufw reload", "ufw disable; ufw --force enable", _FLUSH_NFT, _FLUSH_ALL), (UFW,)),
    _DockerNft("docker-nftables", ("nft",), ("--firewall-backend=nftables",), (_FLUSH_ALL,)),
)


def _multi(flavour: str) -> Path:
    """Return the program that is all tools of iptables of a flavour."""
    return Path(f"/usr/sbin/xtables-{flavour}-multi")


def _path(host: Host, flavour: str) -> str:
    """Return a PATH of a host in which iptables is of a flavour."""
    folder = host.dir / f"bin-{flavour}"
    if not folder.exists():
        folder.mkdir()
        for tool in _TOOLS:
            (folder / tool).symlink_to(_multi(flavour))
    return f"{folder}:{host.env['PATH']}"


def _sh(host: Host, *commands: str) -> None:
    host.run(["sh", "-ec", "\n".join(commands)])


@cache
def _knows_nftables() -> bool:
    command = dockerd_command()
    return (
        command is not None
        and "--firewall-backend" in run([command, "--help"], check=True, capture_output=True, text=True).stdout
    )
