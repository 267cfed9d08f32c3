"""A host with a mortal daemon, all callers' ways to ask it, and a picture of all that they can see.

What a caller asks is a list of requests, one after another, as an engine makes them. A caller that loses the daemon in
one of them repeats that one, and goes on.
"""

import http.client
import json
import re
import socket
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any

from netplug.cli import CliError
from netplug.frontends.cni import shim

from .host import START_TIMEOUT_S, Host
from .mortal import Mortal
from .netplugd import PLUGIN_DIR, RUN_DIR
from .snapshot import Snapshot, difference, snapshot
from .wait import wait_until

UPLINK = "uplink0"
PLUGIN = f"{PLUGIN_DIR}/pynet.sock"
NO_DOCKER = ("--docker-host", "unix:///run/absent.sock")
"""Docker does not answer. Without any, an endpoint whose sandbox has no process soon after a start is dead."""
QUIET_S = 0.15
"""Work that goes on after an answer (links are deleted in the background) has begun by then."""
SETTLE_S = 30
_BESIDE = """
echo "== web"; nsenter --net=/run/netns/web sh -c '
  ip -d -o addr; ip -4 route show table all; ip -6 route show table all; ip -4 rule; ip -6 rule; ss -Hlntu
  grep -s . /proc/sys/net/ipv[46]/conf/*/forwarding /proc/sys/net/ipv[46]/conf/*/rp_filter'
echo "== files"; cd %s; find netplug /run -type f -o -type s | grep -v -e crash -e /run/lock -e events.jsonl
echo "== sysctls"; cd /proc/sys/net && grep -s . ipv4/conf/*/route_localnet ipv[46]/conf/*/forwarding \\
  ipv4/conf/*/rp_filter ipv4/conf/*/arp_ignore ipv6/conf/*/accept_r* ipv6/conf/*/disable_ipv6
"""
_NOISE = re.compile(r"\b(fe80:|ff00::|anycast )| fe80::|link/|inet6 .* scope link")
_VARIES = re.compile(
    r"(@if\d+|\bif\d+|link-netnsid \d+|valid_lft \S+|preferred_lft \S+|^\d+: |expires \S+|tentative |dadfailed "
    r"|\b(linkdown|dead)\b|(?<=127\.0\.0\.11:)\d+|(?<=/netplug-4-)\d+)"
)
_WIRE = re.compile(r"^(eth\d+ veth .*) address \S+")
_OWN_LINK = re.compile(r"address (\S+) altname netplug-\D*-?([0-9a-f]{12})")
Request = Callable[["Scene"], object]


class GoneError(Exception):
    """The daemon died before it answered."""


class RefusedError(AssertionError):
    """The daemon refused."""


class Scene:
    """The host. `repeating`: the caller repeats a request whose answer it did not get."""

    def __init__(self, host: Host, *serve_args: str) -> None:
        self.host = host
        self._prepare()
        self._inhabit("web")
        self.netplug = Mortal(host, *(serve_args or NO_DOCKER))
        self.repeating = False
        self.kept: dict[str, Any] = {}
        """What a caller remembers of answers."""

    def _prepare(self) -> None:
        """Give the host an uplink and sandboxes."""
        lines = (
            "netns add far",
            f"link add {UPLINK} address 02:00:00:00:00:01 type veth peer name near netns far",
            "-n far link set near up",
            f"addr add 203.0.113.1/24 dev {UPLINK}",
            f"-6 addr add fd00:cafe::1/64 dev {UPLINK} nodad",
            f"link set {UPLINK} up",
            f"route add default via 203.0.113.2 dev {UPLINK}",
            "netns add web",
            "-n web link set lo up",
        )
        self.host.run(["sh", "-ec", "\n".join(f"ip {line}" for line in lines)])

    def _inhabit(self, netns: str) -> None:
        """Have a process in a sandbox: without one, a container of Docker counts as dead."""
        path = f"/run/netns/{netns}"
        self.host.popen(["nsenter", f"--net={path}", "sleep", "infinity"], log="sleep.log")
        wait_until(lambda: self.host.output("ip", "netns", "pids", netns), START_TIMEOUT_S, "a process in a sandbox")

    # Asking

    def api(self, method: str, *path: str, already: str = "", **body: Any) -> Any:
        """Ask the REST API. `already`: the refusal that tells a caller who repeats that it was done."""
        client = self.netplug.client
        try:
            if method == "POST":
                return client.post(*path, body=body)
            if method == "PATCH":
                return client.patch(*path, body=body)
            return client.delete(*path)
        except CliError as error:
            self._died(error)
            if self.repeating and already and already in str(error):
                return None
            raise RefusedError(str(error)) from error

    def plugin(self, method: str, body: Any) -> Any:
        """Call a method of the Docker plugin."""
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
            sock.settimeout(START_TIMEOUT_S * 3)
            connection = http.client.HTTPConnection("plugin.moby.localhost")
            connection.sock = sock
            try:
                sock.connect(str(self.host.path(PLUGIN)))
                connection.request("POST", f"/{method}", json.dumps(body))
                response = connection.getresponse()
                answer = json.loads(response.read() or b"{}")
            except (OSError, http.client.HTTPException) as error:
                self._died(error)
                raise
        if response.status != 200:
            raise RefusedError(f"{method}: {answer}")
        return answer

    def executable(self, words: dict[str, str], given: Any) -> Any:
        """Ask as the executable of CNI and netavark does, without its going on alone."""
        request = b"\0".join(
            (b"pynet", *(f"{key}={value}".encode() for key, value in words.items()), b"", json.dumps(given).encode())
        )
        reply = shim.ask(str(self.host.path(f"{RUN_DIR}/cni.sock")), request)
        if not reply:
            self._died(None)
            raise AssertionError("no answer of a daemon that lives")
        head, _, rest = reply.partition(b"\n")
        code, length = map(int, head.split())
        if code:
            raise RefusedError(rest.decode())
        return json.loads(rest[:length] or b"null")

    def alone(self, words: dict[str, str], given: Any) -> None:
        """Run the executable's work in a process of its own, without a daemon."""
        out = self.host.dir / "alone.out"
        out.unlink(missing_ok=True)
        process = self.netplug.fork(
            "netplug.daemon.daemonless_queue:main",
            ["netplug", "pynet"],
            log=out.name,
            env=words | {"NETPLUG_STATE_DIR": str(self.netplug.state_dir), "NETPLUG_RUN_DIR": RUN_DIR},
            stdin=json.dumps(given),
        )
        process.wait(START_TIMEOUT_S * 3)
        said = out.read_text()
        if self._was_killed():
            raise GoneError
        if '"code"' in said or "Traceback" in said:
            raise RefusedError(said)

    def _was_killed(self) -> bool:
        return 0 < self.netplug.control.limit == self.netplug.control.count

    def _died(self, error: Exception | None) -> None:
        """Raise GoneError if the daemon was killed."""
        if self._was_killed() or not self.netplug.running:
            assert self.netplug.process
            self.netplug.process.wait(START_TIMEOUT_S)
            raise GoneError from error

    def start(self) -> None:
        """Start the daemon; it may die at its start."""
        try:
            self.netplug.start()
        except RuntimeError as error:
            self._died(error)
            raise

    def repair(self) -> None:
        """Have the daemon compare, and mend."""
        self.api("POST", "repair")

    @property
    def host_pid(self) -> int:
        """A process in the host's network, as seen inside."""
        return 1

    # Living and dying

    def run(self, requests: Sequence[Request]) -> None:
        """Make requests."""
        for request in requests:
            request(self)

    def run_until(self, limit: int, requests: Sequence[Request]) -> Sequence[Request]:
        """Make requests and let the daemon die at a point; return those without an answer."""
        control = self.netplug.control
        control.arm(limit)
        left = list(requests)
        try:
            with suppress(GoneError):
                while left:
                    left[0](self)
                    del left[0]
            if not left:
                self._work_on()
            if self._was_killed():
                assert self.netplug.process
                self.netplug.process.wait(START_TIMEOUT_S)
        finally:
            control.disarm()
        return left

    def _work_on(self) -> None:
        """Wait until nothing changes any more, or the daemon has died."""
        seen = [-1]

        def ended() -> bool:
            count = self.netplug.control.count
            if self._was_killed():
                return True
            done, seen[:] = count == seen[0], [count]
            return done

        while not ended():
            with suppress(AssertionError):
                wait_until(self._was_killed, QUIET_S)

    def live_again(self) -> None:
        """Start the daemon unless it runs."""
        if self._process_ended():
            self.netplug.start()

    def _process_ended(self) -> bool:
        return not self.netplug.running

    def repeat(self, requests: Sequence[Request]) -> None:
        """Make requests anew, from one on whose answer was lost."""
        for number, request in enumerate(requests):
            self.repeating = number == 0
            try:
                request(self)
            finally:
                self.repeating = False

    # Looking

    def settle(self) -> None:
        """Wait for what comes a while after a start."""

    def take(self) -> Snapshot:
        """Return all that there is, with words of the scene in place of ids that are chosen anew each time."""
        return self.named(self.look())

    def named(self, taken: Snapshot) -> Snapshot:
        """Replace what differs from one time to another."""
        return _named(taken, self.host.name, self._words())

    def _words(self) -> dict[str, str]:
        """Return words in place of ids that netplug chose."""
        words: dict[str, str] = {}
        for key, record in self.records("networks/").items():
            if record["front_end"] != "docker":
                words[key.rpartition("/")[2]] = f"<{record['network']['name']}>"
        for key, record in self.records("endpoints/").items():
            if record["front_end"] != "docker":
                words[key.rpartition("/")[2]] = f"<endpoint {record['name']}>"
        return words

    def look(self) -> Snapshot:
        """Return all that there is."""
        netplug = self.netplug if self.netplug.running else None
        taken = dict(snapshot(self.host, netplug))
        text = self.host.run(["sh", "-c", _BESIDE % self.host.dir], check=False).stdout
        for part in text.split("== ")[1:]:
            name, _, rest = part.partition("\n")
            lines = (_VARIES.sub("", line).strip() for line in rest.splitlines() if not _NOISE.search(line))
            taken[f"in {name}"] = tuple(sorted(lines))
        taken["records"] = tuple(self.records())
        return taken

    def records(self, prefix: str = "") -> dict[str, Any]:
        """Return the records of the store whose keys begin so."""
        path = self.netplug.state_dir / "netplug.db"
        if not path.exists():
            return {}
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            found = db.execute("SELECT key, value FROM record ORDER BY key").fetchall()
        return {key: json.loads(value) for raw, value in found if (key := bytes(raw).decode()).startswith(prefix)}

    def same(self, wanted: Snapshot) -> str:
        """Wait until everything is as wanted, and plans agree with the kernel; return what is not."""
        found = [""]

        def agrees() -> bool:
            found[0] = difference(wanted, self.take())
            if not found[0] and self.netplug.running:
                found[0] = "\n".join(
                    f"diff: {it['owner']} {it['object']}: {it['what']}"
                    for it in self.netplug.client.get("diff")["differences"]
                )
            return not found[0]

        with suppress(AssertionError):
            wait_until(agrees, SETTLE_S)
        return found[0]


def _named(taken: Snapshot, host: str, ids: dict[str, str]) -> Snapshot:
    """Replace ids that netplug chooses anew for each object, the MACs that follow from them, and times."""
    words = ids | {ident[:12]: word for ident, word in ids.items()}
    for section, where in (("links", ""), ("there: links", " there")):
        for line in taken.get(section, ()):
            if found := _OWN_LINK.search(line):
                mac, short = found[1], found[2]
                words.setdefault(mac, f"<MAC of {words.get(short, short)}{where}>")
                words.setdefault(_interface_id(mac), f"<EUI-64 of {words.get(short, short)}{where}>")

    words[host] = "HOST"

    def renamed(line: str) -> str:
        for found, word in words.items():
            line = line.replace(found, word)
        return _WIRE.sub(r"\1", re.sub(r'"created": "[^"]*"', '"created": ""', line))

    return {
        section: tuple(map(renamed, lines)) if "tables" in section else tuple(sorted(map(renamed, lines)))
        for section, lines in taken.items()
    }


def _interface_id(mac: str) -> str:
    """Return the end of the link-local address of a MAC, as nft prints it in a concatenation (RFC 4291, A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return (bytes((octets[0] ^ 2,)) + octets[1:3] + b"\xff\xfe" + octets[3:]).hex().lstrip("0")
