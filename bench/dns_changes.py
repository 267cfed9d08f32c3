"""Names that come and go during a measurement, with a check that each change is visible once its call has returned."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness import Host, Namespace, resolve

from netplug.cli.client import Client

CALLS_A_S = 2


class Changer:
    """Plugs a namespace with `names` in and out, so that as many records change `CALLS_A_S` times a second.

    `ask`: address of the name server and the namespace that it is asked from. `cpu`: where this runs.
    """

    def __init__(self, host: Host, network: str, names: list[str], ask: tuple[str, Namespace], cpu: int) -> None:
        self._client = Client(host.path("/run/netplug"))
        self._place = Namespace(host, "changer")
        self._network, self._names, self._cpu = network, names, cpu
        self._server, self._asker = ask
        self._stop = threading.Event()
        self.failure = ""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Have the names change meanwhile.

        Raises:
            SystemExit: an answer was old.
        """
        self._stop.clear()
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
        if self.failure:
            raise SystemExit(self.failure)

    def _work(self) -> None:
        os.sched_setaffinity(0, {self._cpu})
        where = {"network": self._network, "netns": f"/run/netns/{self._place.name}", "ifname": "eth0"}
        while not self._stop.is_set() and not self.failure:
            said = self._client.post("attach", body={**where, "aliases": self._names})
            address = said["addresses"][0].partition("/")[0]
            self._look(address, there=True)
            self._stop.wait(1 / CALLS_A_S)
            self._client.post("detach", body=where)
            self._look(address, there=False)
            self._stop.wait(1 / CALLS_A_S)

    def _look(self, address: str, *, there: bool) -> None:
        for name in (self._names[0], self._names[-1]):
            told = resolve(self._asker, self._server, name).data
            if (address in told) is not there:
                self.failure = f"{name} is {told} after {address} was {'added' if there else 'removed'}"
