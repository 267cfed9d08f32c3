"""A daemon in a thread, on a fake kernel: for tests that speak to it from outside, as commands and dockerd do."""

import asyncio
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from quiet import quiet_log

from netplug.cli import CliError
from netplug.cli.client import Client
from netplug.cluster.identity import Machine
from netplug.config import Settings, load
from netplug.daemon.life import Daemon
from netplug.kernel.api import HostKernel
from netplug.kernel.fake.kernel import FakeKernel

DEADLINE_S = 20
_T = TypeVar("_T")


def settings_in(folder: Path, **flags: Any) -> Settings:
    given = {"state_dir": folder / "state", "run_dir": folder / "run", "plugin_dir": folder / "plugins"}
    return load(**{**given, "docker_host": "none", "host_name": "host-a", **flags})


def a_namespace() -> str:
    return f"\0netplug-test-{secrets.token_hex(8)}"


class Living:
    """`start` it, speak to it by `client`, `stop` it; `error` is what it ended with."""

    def __init__(
        self,
        settings: Settings,
        *,
        kernel: FakeKernel | None = None,
        namespace: str | None = None,
        marks: Mapping[str, str] | None = None,
        inherited: Mapping[Path, socket.socket] | None = None,
        read: Callable[[], Settings] = load,
    ) -> None:
        self.settings = settings
        self._inherited = inherited or {}
        self._read = read
        self._machine = Machine(str(settings.state_dir), marks or {})
        self.kernel = kernel or FakeKernel()
        self.client = Client(settings.run_dir)
        self.error: BaseException | None = None
        self._namespace = namespace or a_namespace()
        self._locks = settings.run_dir / "locks"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._daemon: Daemon | None = None
        self._made = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as exc:  # noqa: BLE001 - for the test to look at
            self.error = exc
        finally:
            self._made.set()

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._daemon = Daemon(
            self.settings,
            kernel=self._open_kernel,
            namespace=self._namespace,
            locks=self._locks,
            machine=self._machine,
            inherited=self._inherited,
            read=self._read,
        )
        self._made.set()
        await self._daemon.run()

    async def _open_kernel(self) -> HostKernel:
        return self.kernel

    def launch(self) -> None:
        """Start it and do not wait."""
        self._thread.start()

    def start(self) -> "Living":
        """Start it and wait until it answers."""
        self.launch()
        self.wait()
        return self

    def wait(self) -> None:
        """Wait until it answers."""
        until(self._answers, "the daemon answers")

    def _answers(self) -> bool:
        if self.error is not None:
            raise self.error
        try:
            return bool(self.client.get("version"))
        except CliError:
            return False

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def do(self, what: Callable[[Daemon], object]) -> None:
        """Have the daemon do something in its loop."""
        assert self._loop is not None
        assert self._daemon is not None
        self._loop.call_soon_threadsafe(what, self._daemon)

    def do_and_get(self, what: Callable[[Daemon], _T]) -> _T:
        """Have the daemon do something in its loop, and return what comes out."""
        found: Future[_T] = Future()

        def work(daemon: Daemon) -> None:
            try:
                found.set_result(what(daemon))
            except BaseException as exc:  # noqa: BLE001 - it is the caller's
                found.set_exception(exc)

        self.do(work)
        return found.result(DEADLINE_S)

    def wait_for(self, what: Callable[[Daemon], Coroutine[Any, Any, _T]]) -> _T:
        """Have the daemon do something in its loop that takes a while, and return what comes out."""
        assert self._loop is not None
        assert self._daemon is not None
        return asyncio.run_coroutine_threadsafe(what(self._daemon), self._loop).result(DEADLINE_S)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let it hang, as SIGSTOP does."""
        go_on = threading.Event()
        self.do(lambda _: go_on.wait(DEADLINE_S))
        try:
            yield
        finally:
            go_on.set()

    def stop(self) -> None:
        """Stop it and wait until it has ended."""
        self.tell_to_stop()
        self.join()

    def tell_to_stop(self) -> None:
        """Do as SIGTERM does."""
        self._made.wait(DEADLINE_S)
        if self._loop is not None and self._daemon is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # it ended just now
                self._loop.call_soon_threadsafe(self._daemon.stop)

    def join(self) -> None:
        """Wait until it has ended by itself."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the daemon did not stop"


@contextmanager
def living(
    folder: Path, kernel: FakeKernel | None = None, marks: Mapping[str, str] | None = None, **flags: Any
) -> Iterator[Living]:
    with quiet_log():
        daemon = Living(settings_in(folder, **flags), kernel=kernel, marks=marks).start()
        try:
            yield daemon
        finally:
            daemon.stop()
            assert daemon.error is None, daemon.error


def until(condition: Callable[[], object], what: str) -> None:
    """Poll. The failure tells what the functions returned that the condition calls."""
    deadline, pause = time.monotonic() + DEADLINE_S, 0.005
    while not condition():
        if time.monotonic() >= deadline:
            result, returned = watched(condition)
            assert result, f"not in {DEADLINE_S} s: {what}; at last: {', '.join(returned) or result}"
            return
        time.sleep(pause)
        pause = min(pause * 1.2, 0.02)  # each look has the daemon answer, too, and takes from what is waited for


def connect(path: Path) -> socket.socket:
    """Return a connection to one of a daemon's sockets."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE_S)
    sock.connect(str(path))
    return sock


def watched(condition: Callable[[], _T]) -> tuple[_T, list[str]]:
    """Call it, and return also what each function returned that it called itself."""
    code, returned = getattr(condition, "__code__", None), list[str]()

    def note(frame: FrameType, event: str, value: object) -> None:
        if event == "return" and frame.f_back and frame.f_back.f_code is code:
            returned.append(f"{frame.f_code.co_name}() == {value!r}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        return condition(), returned
    finally:
        sys.setprofile(before)
