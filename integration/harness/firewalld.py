"""firewalld inside a host, with its nftables back end and a message bus of its own.

It is the system's or, since one that is installed guards the machine, the one that `packaging/setup.sh` unpacked.
"""

from shutil import which

import pytest

from .host import Host
from .unpacked import FOLDER, lay_over
from .wait import wait_until

UNPACKED = FOLDER / "firewalld"
_START_S = 20
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow receive_sender="*"/>
  </policy>
</busconfig>
"""

needs_firewalld = pytest.mark.skipif(
    not (which("dbus-daemon") and (UNPACKED.exists() or which("firewalld"))), reason="needs firewalld (make setup)"
)


class Firewalld:
    """A firewalld that guards a host, with the settings that it has when it is installed. It ends with its host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        lay_over(host, *[UNPACKED] * UNPACKED.exists())
        host.run(["mkdir", "-p", "/run/dbus"])
        (host.dir / "bus.conf").write_text(_BUS)
        bus = ["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={host.dir / 'bus.conf'}"]
        host.popen(bus, log="dbus.log")
        wait_until(host.path("/run/dbus/system_bus_socket").exists, _START_S, "the message bus")
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
