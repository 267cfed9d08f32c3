"""The process that probes: reads requests from its standard input, one JSON object a line, and ends with it.

It starts within a tenth of a second, so it imports little. Each request has a thread of its own. All that it makes in
the kernel (sockets, tables of nf_tables, a tap, a BPF program) belongs to its descriptors, and goes with them.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from netplug.kernel.probes.api import Job, Look
from netplug.kernel.probes.codec import from_json, to_json
from netplug.kernel.probes.errors import ProbeError


class Worker:
    """The requests of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[int, threading.Event] = {}

    def serve(self) -> None:
        """Handle requests until the other side closes."""
        threading.Thread(target=_prepare, daemon=True).start()
        for line in sys.stdin:
            message = json.loads(line)
            number, do = message["id"], message["do"]
            if do == "end":
                self._ends.setdefault(number, threading.Event()).set()
                continue
            self._ends.setdefault(number, threading.Event())
            work = {"run": self._run, "watch": self._watch, "who_has": self._who_has, "look": self._look}[do]
            threading.Thread(target=self._do, args=(number, work, message["body"]), daemon=True).start()

    def _do(self, number: int, work: Callable[[int, Any], Any], body: Any) -> None:
        try:
            self._say(id=number, result=to_json(work(number, body)))
        except ProbeError as error:
            self._say(id=number, error=str(error))
        except OSError as error:
            self._say(id=number, error=f"{error.strerror or error}".lower())
        except Exception as error:  # noqa: BLE001 - told to the daemon, which logs it
            self._say(id=number, error=f"the probe failed: {error!r}")

    def _say(self, **message: Any) -> None:
        with self._lock:
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()

    @staticmethod
    def _run(_number: int, body: Any) -> Any:
        from netplug.kernel.probes.running import run  # noqa: PLC0415 - each request needs other modules

        return run(from_json(Job, body))

    def _watch(self, number: int, body: Any) -> Any:
        from netplug.kernel.probes.running import watch  # noqa: PLC0415

        return watch(from_json(Job, body), lambda: self._say(id=number, ready=True), self._ends[number])

    @staticmethod
    def _who_has(_number: int, body: Any) -> Any:
        from netplug.kernel.probes.segments import who_has  # noqa: PLC0415

        return who_has(body["netns"], body["link"], ip_address(body["address"]), body["wait_ms"])

    @staticmethod
    def _look(_number: int, body: Any) -> Any:
        from netplug.kernel.probes.looking import look  # noqa: PLC0415

        return look(from_json(Look, body))


def _prepare() -> None:
    """Do what takes a while, and each trace needs, before it is asked for."""
    from netplug.kernel.probes import kernel_drops, running  # noqa: F401, PLC0415

    with suppress(ProbeError):
        kernel_drops.kernel()


def main() -> None:
    """Serve; what still runs then is abandoned."""
    Worker().serve()
    os._exit(0)


if __name__ == "__main__":
    main()
