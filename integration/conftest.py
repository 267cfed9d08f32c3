"""Fixtures of the integration tests: shared daemons a module, a leak check a test, logs where one fails.

`host`, `client`, `dockerd` and `netplug` live as long as a module and are shared by its tests; a test that
needs its own calls `new_host()`. Every test that passes must leave the shared hosts as it found them.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from shutil import which
from tempfile import gettempdir

import pytest
from harness import (
    Dockerd,
    Host,
    Netplug,
    Node,
    Underlay,
    Wire,
    assert_same,
    connect,
    links_are_gone,
    overlay,
    snapshot,
)
from harness.dockerd import dockerd_command
from harness.host import NAME_PREFIX, cgroup_folders
from harness.overlay import BLUE, VNI

from netplug.lab.image import IMAGE

LOG_LINES = 60
TEST_TIMEOUT_S = 240
"""Ends what hangs. The longest that has no deadline of its own takes 40 s, and a busy machine several times as long."""
NOISE = re.compile(r"loading plugin|cleaning up after shim|cleanup warnings|starting signal loop")
"""What every container's shim writes into dockerd's log."""

_passed = pytest.StashKey[bool]()

# A shell has what it starts in the background ignore SIGINT, and so would all commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tools = ("unshare", "nsenter", "ip", "ss", "nft", "iptables", "busybox")
    missing = [name for name in tools if not which(name)] + ["dockerd"] * (not dockerd_command())
    reason = "needs root" if os.geteuid() else f"needs {', '.join(missing)} (make setup)" if missing else ""
    for item in items:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the daemons' logs with a failure, and remember the outcome for the leak check."""
    report = yield
    if call.when == "call":
        item.stash[_passed] = report.passed
    if report.failed:
        for host in Host.live:
            for log in host.logs:
                lines = log.read_text(errors="replace").splitlines()
                tail = [line for line in lines if not NOISE.search(line)][-LOG_LINES:]
                report.sections.append((f"{host.name}: {log.name}", "\n".join(tail)))
    return report


class Shared:
    """The daemons of a module, for the leak check: what to look at, and what to clean after a failure."""

    def __init__(self) -> None:
        self.dockerds: dict[Host, Dockerd] = {}
        self.netplugs: dict[Host, Netplug] = {}

    def snapshot(self, host: Host) -> dict[str, tuple[str, ...]]:
        return snapshot(host, self.netplugs.get(host))


@pytest.fixture(scope="module")
def shared() -> Shared:
    return Shared()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host of the module."""
    with Host() as it:
        yield it


@pytest.fixture(scope="module")
def client() -> Iterator[Host]:
    """Another host of the module; `wire` connects the two."""
    with Host("client") as it:
        yield it


@pytest.fixture(scope="module")
def wire(host: Host, client: Host) -> Wire:
    """The cable between `host` (left) and `client` (right); each is the other's default route."""
    return connect(host, client)


@pytest.fixture(scope="module")
def dockerd(
    host: Host,
    wire: Wire,  # noqa: ARG001 - the uplink is there before the engine
    shared: Shared,
) -> Dockerd:
    """A dockerd on `host`, with the image `bb:1`; it ends with its host."""
    it = shared.dockerds[host] = Dockerd(host)
    _use_once(it, "bridge")
    return it


@pytest.fixture(scope="module")
def netplug(host: Host, dockerd: Dockerd, shared: Shared) -> Netplug:
    """A netplug daemon on `host` beside `dockerd`; it ends with its host."""
    it = shared.netplugs[host] = Netplug(host)
    _use_once(dockerd, "pynet", "--ipv6", "--subnet", "10.99.0.0/24", "--subnet", "fd00:99::/64")
    return it


@pytest.fixture(scope="module", params=[4, 6], ids=["over-IPv4", "over-IPv6"])
def under(request: pytest.FixtureRequest, host: Host, client: Host, wire: Wire) -> Underlay:
    """The VTEPs of `host` and `client`: in IPv4 not the addresses that routes would choose as source."""
    links = (wire.left_link, wire.right_link)
    if request.param == 6:
        return Underlay(6, wire.left6, wire.right6, links)
    vteps = ("203.0.113.101", "203.0.113.102")
    for place, vtep, link in zip((host, client), vteps, links, strict=True):
        place.run(["ip", "addr", "add", f"{vtep}/24", "dev", link])
    return Underlay(4, *vteps, links)


@pytest.fixture(scope="module")
def nodes(host: Host, client: Host, under: Underlay) -> Iterator[tuple[Node, Node]]:
    """Engines on `host` and `client` that are told of each other's endpoints by the test."""
    with ExitStack() as stack:
        made = Node(host, under.left), Node(client, under.right)
        for node in made:
            stack.callback(node.close)
        # What is made once and kept: sysctls.
        with overlay("warm-up", made, BLUE, vni=VNI):
            pass
        links_are_gone(host, client)
        yield made


def _use_once(dockerd: Dockerd, driver: str, *options: str) -> None:
    """Have the daemons make what they make once and keep: chains, sets, sysctls."""
    dockerd.docker("network", "create", "-d", driver, *options, "warm-up")
    dockerd.docker("run", "--rm", "--network", "warm-up", "-p", "1", IMAGE, "true")
    dockerd.docker("network", "rm", "warm-up")
    links_are_gone(dockerd.host)


@pytest.fixture
def new_host() -> Iterator[Callable[..., Host]]:
    """A function that makes hosts of this test alone, by name."""
    with ExitStack() as stack:
        yield lambda name="own": stack.enter_context(Host(name))


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest, shared: Shared) -> Iterator[None]:
    """Compare the shared hosts before and after; after a failed test only clean up for the next."""
    before = {host: shared.snapshot(host) for host in Host.live}
    yield
    if request.node.stash.get(_passed, False):
        for host, taken in before.items():
            assert_same(taken, lambda host=host: shared.snapshot(host))  # type: ignore[misc]
        return
    for dockerd in shared.dockerds.values():
        if not dockerd.running:
            dockerd.start()
        dockerd.remove_everything()


@pytest.fixture(autouse=True, scope="session")
def machine_unchanged() -> Iterator[None]:
    """Assert that the run leaves nothing on the machine, and the root namespace as it was."""
    before = _machine()
    yield
    assert_same(before, _machine)


def _machine() -> dict[str, tuple[str, ...]]:
    """The root namespace's network (others may open sockets there), and what is named after our hosts."""
    me = f"{NAME_PREFIX}{os.getpid()}-"
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return snapshot(_InRoot()) | {
        "sockets": (),
        "netns": (),
        "folders": tuple(path.name for path in Path(gettempdir()).glob(f"{me}*")),
        "mounts": tuple(line for line in mounts if me in line),
        "cgroups": tuple(map(str, cgroup_folders(f"{me}*"))),
        "processes": tuple(_processes_naming(me)),
    }


class _InRoot:
    """Runs commands as a `Host` does, in the root namespace, where it must only read."""

    @staticmethod
    def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, check=True, capture_output=True, text=True)


def _processes_naming(mark: str) -> Iterator[str]:
    """The processes whose command line, environment or control group names a host of this run."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(mark.encode() in (folder / name).read_bytes() for name in ("cmdline", "environ", "cgroup")):
                yield f"{folder.name} {(folder / 'comm').read_text().strip()}"
