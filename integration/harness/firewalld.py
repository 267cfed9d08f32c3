"""firewalld inside a host, with its nftables back end and a message bus of its own.

It is the system's or, since one that is installed guards the machine, the one that `packaging/setup.sh` unpacked.
"""

from shutil import which

import pytest

from .bus import start_bus
from .host import Host
from .unpacked import FOLDER, lay_over
from .wait import wait_until

UNPACKED = FOLDER / "firewalld"
_START_S = 40

needs_firewalld = pytest.mark.skipif(
    not (which("dbus-daemon") and (UNPACKED.exists() or which("firewalld"))), reason="needs firewalld (make setup)"
)


class Firewalld:
    """A firewalld that guards a host, with the settings that it has when it is installed. It ends with its host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        lay_over(host, *[UNPACKED] * UNPACKED.exists())
        start_bus(host)
        self.start()

    def start(self) -> None:
        """Start it and wait until it guards."""
        log = self.host.dir / "firewalld-own.log"
        command = ["firewalld", "--nofork", "--nopid", "--log-file", str(log)]
        self.process = self.host.popen(command, log="firewalld.log")
        wait_until(self._guards, _START_S, "firewalld")

    def _guards(self) -> bool:
        assert self.process.alive, "firewalld ended"
        return self.host.run(["firewall-cmd", "--state"], check=False).returncode == 0

    def restart(self) -> None:
        self.process.stop()
        self.start()
