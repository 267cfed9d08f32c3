"""A netplug in whose Docker plugin something breaks at one request: the connection, or one of the daemons."""

import json
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from .host import Host
from .netplugd import Netplug


class Moment(StrEnum):
    """When it breaks: netplug has read nothing of the request, or has done all and not answered."""

    ASKED = "asked"
    ANSWERED = "answered"


class What(StrEnum):
    """What breaks: the request's connection alone, or this daemon by SIGKILL, and the connection with it.

    A containerd is dockerd's, which starts it anew; the connection stays.
    """

    CONNECTION = "connection"
    DOCKERD = "dockerd"
    CONTAINERD = "containerd"
    NETPLUG = "netplug"


@dataclass(frozen=True)
class Fault:
    """It happens at the request with a number since `FaultyNetplug.begin`, the first being 1."""

    number: int
    moment: Moment
    what: What


class FaultyNetplug(Netplug):
    """`netplug serve`, with faults at will."""

    def __init__(self, host: Host, *serve_args: str) -> None:
        self._folder = host.dir / "faults"
        self._folder.mkdir()
        self.begin()
        super().__init__(host, *serve_args, env={"FAULTS": str(self._folder)})

    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("faulty_netplug.py")), *super().command()[1:]]

    def begin(self, fault: Fault | None = None) -> None:
        """Count from now on, and have this happen."""
        place = self._folder / "fault"
        place.unlink(missing_ok=True)
        (self._folder / "calls").write_text("")
        if fault:
            place.write_text(json.dumps({"number": fault.number, "moment": fault.moment, "what": fault.what}))

    @property
    def happened(self) -> bool:
        """Whether the fault was due."""
        return not (self._folder / "fault").exists()

    def calls(self) -> list[str]:
        """Return the methods of all requests since `begin`."""
        return (self._folder / "calls").read_text().split()
