"""A user's story with Docker in which something breaks at one request, and what must be true after it.

The story is what containers and networks live through: made, started, connected, disconnected, stopped, started again,
removed. At each of its requests to the plugin, dockerd, its containerd or netplug can be killed, or the connection can
break. Then the user says again what failed, and removes all. For `test_engine_faults.py`.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from threading import Event
from time import monotonic

from harness import CommandError, Dockerd, Host, assert_same, connect, snapshot, wait_until
from harness.faults import Fault, FaultyNetplug, What

from netplug.lab.image import IMAGE

POLL_S = 0.05

SETTLE_S = 40.0
"""netplug compares with Docker some 20 s after a lost request."""
SUBNETS = {"pynet": "10.81.0.0/24", "docker": "10.82.0.0/24"}
"""Of the story's networks, by whose IPAM they have."""
_RUN = ("run", "-d", "--init", "--stop-signal", "KILL")

STORY: tuple[tuple[str, ...], ...] = (
    ("network", "create", "-d", "pynet", "--ipam-driver", "pynet", "--subnet", SUBNETS["pynet"], "red"),
    ("network", "create", "-d", "pynet", "--subnet", SUBNETS["docker"], "blue"),
    (*_RUN, "--network", "red", "-p", "8080:80", "--name", "web", IMAGE, "sleep", "3600"),
    ("network", "connect", "blue", "web"),
    ("network", "disconnect", "blue", "web"),
    ("network", "connect", "blue", "web"),
    ("stop", "-t", "0", "web"),
    ("start", "web"),
    ("network", "disconnect", "red", "web"),
    ("rm", "-f", "web"),
    ("network", "rm", "red"),
    ("network", "rm", "blue"),
)

_DOCKERS = "-A FORWARD -j DOCKER"
_NO_POOL = "libnetwork.(*controller).reservePools"


class Scene:
    """A host with dockerd and a netplug that can break."""

    def __init__(self, stack: ExitStack, *docker_args: str) -> None:
        self.host = stack.enter_context(Host("faulty"))
        connect(self.host, stack.enter_context(Host("client")))
        self.dockerd = Dockerd(self.host, *docker_args)
        self.netplug = FaultyNetplug(self.host)
        self._revived = True
        for _ in range(2):  # the first makes what is made once; and dockerd makes itself known
            assert not self.tell(), "without a fault all succeeds"
        self.calls = self.netplug.calls()
        self.before = self._snapshot()

    def _snapshot(self) -> dict[str, tuple[str, ...]]:
        """Take all; a dockerd that dies at work may leave its jumps to its own chains in another order."""
        taken = snapshot(self.host, self.netplug)
        rules = sorted(taken["iptables"], key=lambda it: it if _DOCKERS in it else "")
        return taken | {"iptables": tuple(rules)}

    def tell(self, fault: Fault | None = None) -> list[str]:
        """Run all commands; what fails is said once more. Return what failed, with Docker's words."""
        self.netplug.begin(fault)
        self._revived = fault is None or fault.what is What.NETPLUG
        over = Event()
        with ThreadPoolExecutor(1) as pool:
            # Docker waits long for an absent plugin, which the machine's init starts at once.
            init = pool.submit(self._bring_back, over) if fault and fault.what is What.NETPLUG else None
            try:
                failures = self._say(fault)
            finally:
                over.set()
            if init:
                init.result()
        self.revive(fault)
        return failures

    def _bring_back(self, over: Event) -> None:
        while not over.wait(POLL_S):
            if not self.netplug.running:
                self.netplug.start()

    def _say(self, fault: Fault | None) -> list[str]:
        failures: list[str] = []
        for command in STORY:
            for _ in range(2):
                try:
                    self.dockerd.docker(*command)
                    break
                except CommandError as exc:
                    failures.append(f"{' '.join(command[:3])}: {exc.stderr.strip()}")
                    if not (fault and fault.what is What.NETPLUG):
                        self.revive(fault)
                    if command[0] == "run":
                        with suppress(CommandError):
                            self.dockerd.docker("rm", "-f", "web")
        return failures

    def revive(self, fault: Fault | None = None) -> None:
        """Start again what was killed, as the machine's init does."""
        if fault and fault.what is What.DOCKERD and self.netplug.happened and not self._revived:
            wait_until(lambda: not self.dockerd.running, what="dockerd dies")
            self._revived = True
        if not self.netplug.running:
            self.netplug.start()
        if not self.dockerd.running:
            self._start_docker()

    def _start_docker(self) -> None:
        """Start dockerd. If it cannot, since it died while it released a network's pools, delete its networks first.

        Docker 20.10 keeps such a network without a pool, and then ends at each start with an index out of range.
        """
        try:
            self.dockerd.start()
        except RuntimeError:
            if _NO_POOL not in self.dockerd.log.read_text():
                raise
            (self.host.dir / "docker/network/files/local-kv.db").unlink()
            self.dockerd.start()

    def _starts(self) -> bool:
        """Whether containers start; not while dockerd's containerd is away."""
        try:
            self.dockerd.docker("run", "--rm", "--network", "none", IMAGE, "true")
        except CommandError:
            return False
        return True

    def clean_up(self) -> None:
        """Remove what Docker lists, as a user does."""
        wait_until(self._starts, SETTLE_S, "containers start")
        if rest := self.dockerd.docker("ps", "-aq").split():
            self.dockerd.docker("rm", "-f", *rest)
        for name in self.dockerd.docker("network", "ls", "-q", "--filter", "type=custom").split():
            try:
                self.dockerd.docker("network", "rm", name)
            except CommandError as exc:
                # dockerd may count an endpoint for ever that none of its lists has (moby 17217).
                if "has active endpoints" not in exc.stderr:
                    raise
                self.dockerd.restart()
                self.dockerd.docker("network", "rm", name)

    def assert_clean(self) -> float:
        """Assert that nothing is left, and return the seconds that it took."""
        since = monotonic()
        assert_same(self.before, self._snapshot, SETTLE_S)
        wait_until(lambda: not self.netplug.drift(), SETTLE_S, "no difference")
        assert self.netplug.client.get("ipam/audit")["findings"] == []
        return monotonic() - since
