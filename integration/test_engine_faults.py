"""Engines that are killed, and connections that break, at a request to netplug: nothing is left, and all works again.

Each fault of `engine_faults.STORY` is one. A few of them run with all tests, each with `make engines`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from shutil import which

import pytest
from engine_faults import Scene
from harness import BIN_DIR, CommandError, Host, Netplug, Podman, assert_same, connect, snapshot, wait_until
from harness.faults import Fault, Moment, What

ALL = [*What]
TRIES = 5
RARE = 2
"""Requests more that Docker made when they were counted than in other runs."""


@pytest.fixture(scope="module", params=[(), ("--live-restore",)], ids=["", "live-restore"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack, *request.param)


@pytest.fixture(autouse=True)
def leak_check() -> None:
    """It is the story's own."""


def some(calls: list[str]) -> Iterator[Fault]:
    """A fault at each method: its last request of the story, and the faults in turn."""
    last = {method: number for number, method in enumerate(calls, 1)}
    for turn, number in enumerate(last.values()):
        yield Fault(number, [*Moment][turn // len(ALL) % 2], ALL[turn % len(ALL)])


def check(scene: Scene, fault: Fault, *, rare: bool = False) -> str:
    """Have a fault happen in the story, and return how it went.

    Docker makes a request or two more in some runs, so a story that ends before the fault is told again.
    """
    for _ in range(TRIES):
        failed = scene.tell(fault)
        if scene.netplug.happened:
            break
    else:
        if rare:
            return f"{fault.what} at {fault.number} ({fault.moment}): Docker made no such request in {TRIES} stories"
    try:
        assert scene.netplug.happened
        scene.clean_up()
        took_s = scene.assert_clean()
    except AssertionError as exc:
        words = "\n".join(failed)
        raise AssertionError(f"{scene.calls[fault.number - 1]}, {fault}: {exc}\n{words}") from None
    method = scene.calls[fault.number - 1]
    return f"{fault.what} at {fault.number} {method} ({fault.moment}): {len(failed)} failed, clean after {took_s:.1f} s"


@pytest.mark.timeout(600)
def test_nothing_is_lost_when_an_engine_dies_at_a_request(scene: Scene) -> None:
    if "--live-restore" in scene.dockerd.args:
        created = scene.calls.index("NetworkDriver.Join") + 1
        faults = [
            Fault(created, Moment.ANSWERED, What.DOCKERD),
            Fault(len(scene.calls) - 4, Moment.ASKED, What.DOCKERD),
        ]
    else:
        faults = [*some(scene.calls)]
        # Docker never hears of a network that netplug has made.
        created = scene.calls.index("NetworkDriver.CreateNetwork") + 1
        faults += [Fault(created, Moment.ANSWERED, what) for what in (What.DOCKERD, What.CONNECTION, What.NETPLUG)]
        faults += [Fault(scene.calls.index("IpamDriver.RequestPool") + 1, Moment.ANSWERED, What.CONNECTION)]
    for fault in faults:
        check(scene, fault)
    assert not scene.tell(), "the story works as before"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("what", What)
def test_nothing_is_lost_at_any_request(scene: Scene, what: What, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1, len(scene.calls) + 1):
        for moment in Moment:
            said = check(scene, Fault(number, moment, what), rare=number > len(scene.calls) - RARE)
            with capsys.disabled():
                print(said, flush=True)


# podman, which has no daemon: what is killed is the command that called the plugin

_WRAPPER = """#!/bin/sh
echo "$CNI_COMMAND" >>{folder}/calls
if [ "$(wc -l <{folder}/calls)" != "$(cat {folder}/number)" ]; then exec {real} "$@"; fi
if [ "$(cat {folder}/moment)" = answered ]; then {real} "$@" >/dev/null; fi
kill -9 $PPID
"""


class Pods:
    """A host with podman, whose calls of the plugin can be its last."""

    def __init__(self, stack: ExitStack) -> None:
        self.host = stack.enter_context(Host("pods"))
        connect(self.host, stack.enter_context(Host("client")))
        self.netplug = Netplug(self.host, "--docker-host", "none")
        self.netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
        self.netplug.cli("network", "create", "blue", "--subnet", "10.91.0.0/24", "--ipv6")
        self.podman = Podman(self.host, "blue", self.netplug.cli("cni", "config", "blue"))
        self._wrap()
        self.tell()
        self.before = self.snapshot()

    def _wrap(self) -> None:
        self.folder = "/run/wrapped"
        plugin = f"{BIN_DIR}/pynet"
        self.host.run(["sh", "-ec", f"mkdir {self.folder}; mv {plugin} {plugin}-real"])
        self.host.path(plugin).write_text(_WRAPPER.format(folder=self.folder, real=f"{plugin}-real"))
        self.host.run(["chmod", "+x", plugin])

    def snapshot(self) -> dict[str, tuple[str, ...]]:
        return snapshot(self.host, self.netplug)

    def tell(self, number: int = 0, moment: Moment = Moment.ASKED) -> list[str]:
        """Run, stop, start, remove a container, and say again what failed; return the calls of the plugin."""
        for name, text in (("calls", ""), ("number", str(number)), ("moment", moment)):
            self.host.path(f"{self.folder}/{name}").write_text(text)
        for step in ("run", "stop", "start", "rm"):
            for _ in range(2):
                with suppress(CommandError):
                    self._do(step)
                    break
        return self.host.path(f"{self.folder}/calls").read_text().split()

    def _do(self, step: str) -> None:
        match step:
            case "run":
                with suppress(CommandError):
                    self.podman("rm", "-f", "-t", "0", "web")
                self.podman.run("web", "-p", "8080:80")
            case "start":
                self.podman("start", "web")
            case _:
                self.podman(step, *(["-f"] if step == "rm" else []), "-t", "0", "web")

    def forget(self) -> None:
        """Remove the namespaces of containers that podman does not have any more, as a reboot does."""
        for name in self.snapshot()["netns"]:
            if name not in self.before["netns"]:
                self.host.run(["ip", "netns", "del", name])


@pytest.mark.skipif(which("podman") is None, reason="needs podman (make setup)")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"])
def test_nothing_is_lost_when_podman_is_killed_at_a_call_of_the_plugin(*, every: bool) -> None:
    """podman asks for the plugin's version before each call: of no consequence."""
    with ExitStack() as stack:
        pods = Pods(stack)
        calls = pods.tell()
        assert [call for call in calls if call != "VERSION"] == ["ADD", "DEL", "ADD", "DEL"]
        points = [(number, moment) for number, call in enumerate(calls, 1) if call != "VERSION" for moment in Moment]
        # An ADD that was done, a DEL that was not; an ADD that was not done, a DEL that was.
        for number, moment in points if every else (points[1], points[2], points[4], points[7]):
            pods.tell(number, moment)
            pods.forget()
            assert_same(pods.before, pods.snapshot)
            assert wait_until(lambda: not pods.netplug.drift())
        assert pods.tell() == calls
