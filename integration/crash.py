"""Kill netplug at every point of everything it does, on the real kernel; `make crash` runs this.

For each case (see `crash_cases`): what is done is done once undisturbed, and all points are counted, after each change
of kernel, firewall and store. Then for each point: the process dies there by SIGKILL, is started again, and the caller
repeats the request whose answer was lost. Everything must be as after the undisturbed run, and `netplug diff` empty;
after the opposite requests, everything as before. Then the same while those requests are made.

The table has the points that were tried, and the leaks: points after which something was left, lost or refused.
"""

import argparse
import json
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

from crash_cases import Case, Requests, cases
from harness import Host
from harness.crash_cluster import ClusterScene
from harness.crash_scene import Scene
from harness.snapshot import Snapshot, difference

_ATTEMPTS = 3
"""The daemon may do some things at once this time that it did one after the other, and so have fewer points."""


@dataclass
class Leak:
    """What was not as it is without a crash. `after`: what was done before the process died."""

    way: str
    point: int
    after: str
    difference: str


@dataclass
class Result:
    """`points`: counted in an undisturbed run; `tried`: at which the process died."""

    case: str
    points: int = 0
    tried: int = 0
    seconds: float = 0
    kinds: list[str] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)


class Run:
    """One case. `stride`: every so manyeth point is tried, from `first` on."""

    def __init__(self, case: Case, stride: int = 1, first: int = 1) -> None:
        self._case = case
        self._stride = stride
        self._first = first
        self._stack: ExitStack
        self._scene: Scene
        self.result = Result(case.name)

    def run(self) -> Result:
        """Try the points, and return what came of it."""
        started = monotonic()
        self._set_up()
        try:
            self._both()
        finally:
            self._stack.close()
            self.result.seconds = round(monotonic() - started, 1)
        return self.result

    def _set_up(self) -> None:
        """Make a host where the given requests are done, and what is made once and kept is there."""
        case = self._case
        self._stack = ExitStack()
        try:
            scene = self._scene = self._new_scene()
            if not case.daemon:
                scene.netplug.stop()
            for requests in (case.given, case.do, case.undo, case.do, case.undo):
                scene.run(requests)
        except BaseException:
            self._stack.close()
            raise

    def _new_scene(self) -> Scene:
        if self._case.cluster:
            scene: Scene = ClusterScene(self._stack)
        else:
            scene = Scene(self._stack.enter_context(Host("crash")))
        self._stack.callback(scene.netplug.close)
        return scene

    def _both(self) -> None:
        case = self._case
        before = self._settled()
        done, after = self._counted(case.do)
        undone, again = self._counted(case.undo) if case.undo else ([], after)
        if found := difference(before, again) if case.undo else "":
            self._leak("undisturbed", 0, "", found)
        if not case.undo:
            before = after
        if "do" in case.ways:
            self._each("do", done, case.do, after, case.undo, before)
        if case.undo and "undo" in case.ways:
            self._scene.run(case.do)
            self._each("undo", undone, case.undo, before, case.do, after)

    def _settled(self) -> Snapshot:
        """Return the picture when two in a row are the same."""
        found = ""
        self._scene.settle()
        for _ in range(20):
            taken = self._scene.take()
            if not (found := self._scene.same(taken)):
                return taken
        raise AssertionError(f"{self._case.name}: it does not come to rest: {found}")

    def _counted(self, requests: Requests) -> tuple[list[str], Snapshot]:
        assert not self._scene.run_until(0, requests)
        names = self._scene.netplug.control.names()
        self.result.kinds = sorted({*self.result.kinds, *names})
        return names, self._settled()

    def _each(
        self, way: str, names: Sequence[str], requests: Requests, wanted: Snapshot, back: Requests, origin: Snapshot
    ) -> None:
        self.result.points += len(names)
        if not names:
            self._leak(way, 0, "", "no points: nothing was changed, so nothing was tried")
        for number in range(self._first, len(names) + 1, self._stride):
            for _ in range(_ATTEMPTS):
                died, found = self._try(number, requests, wanted, back, origin)
                if died or found:
                    break
            self.result.tried += died
            if found:
                self._leak(way, number, names[number - 1], found)
                self._stack.close()
                self._set_up()
                if way == "undo":
                    self._scene.run(back)

    def _try(
        self, number: int, requests: Requests, wanted: Snapshot, back: Requests, origin: Snapshot
    ) -> tuple[bool, str]:
        """Let the process die at a point; return whether it did, and what is not as it is to be then."""
        scene, died = self._scene, False
        try:
            left = scene.run_until(number, requests)
            died = bool(left) or not scene.netplug.running
            if self._case.daemon or (not left and Scene.start in requests):  # its start was answered before it died
                scene.live_again()
            scene.repeat(left)
            if found := scene.same(wanted):
                return died, found
            scene.run(back)
            found = scene.same(origin)
        except Exception as error:  # noqa: BLE001 - each point is tried
            return died, f"{type(error).__name__}: {error}"
        else:
            return died, found and f"after the way back:\n{found}"

    def _leak(self, way: str, number: int, after: str, found: str) -> None:
        self.result.leaks.append(Leak(way, number, after, found))
        print(f"LEAK {self._case.name}: {way}, point {number} ({after}):\n{found}", file=sys.stderr, flush=True)


def chosen(words: Iterable[str]) -> Iterator[Case]:
    """Yield the cases whose names have all words."""
    return (case for case in cases() if all(word in case.name for word in words))


def main() -> int:
    """Run cases and print the table; 1 if something was left, lost or refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only cases whose names have all these words")
    parser.add_argument("--stride", type=int, default=1, help="try every so manyeth point")
    parser.add_argument("--workers", type=int, default=4, help="hosts at a time")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    given = parser.parse_args()
    results: list[Result] = []
    printing = threading.Lock()

    def one(case: Case) -> None:
        run = Run(case, given.stride)
        try:
            run.run()
        except Exception as error:  # noqa: BLE001 - the others are run all the same
            run.result.leaks.append(Leak("", 0, "", f"{type(error).__name__}: {error}"))
        with printing:
            results.append(it := run.result)
            print(f"{it.case:<64} {it.tried:>5}/{it.points:<5} {len(it.leaks):>5} {it.seconds:>6} s", flush=True)
            if it.leaks and not it.leaks[0].way:
                print(it.leaks[0].difference, file=sys.stderr, flush=True)

    print(f"{'case':<64} {'points':>11} {'leaks':>5}")
    with ThreadPoolExecutor(given.workers) as pool:
        list(pool.map(one, sorted(chosen(given.words), key=lambda it: not it.cluster)))  # the longest first
    leaks = sum(len(it.leaks) for it in results)
    print(f"{sum(it.tried for it in results)} of {sum(it.points for it in results)} points, {leaks} leaks")
    if given.json:
        Path(given.json).parent.mkdir(parents=True, exist_ok=True)
        found = [asdict(it) for it in sorted(results, key=lambda it: it.case)]
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")
    return int(leaks > 0)


if __name__ == "__main__":
    sys.exit(main())
