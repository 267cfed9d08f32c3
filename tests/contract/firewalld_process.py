"""A real firewalld for the namespace of a test, with a message bus and a configuration of its own."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import IO

import pytest

UNPACKED = Path(__file__).resolve().parents[2] / ".venv" / "firewalld"
needs_firewalld = pytest.mark.skipif(
    not (which("dbus-daemon") and (UNPACKED.exists() or which("firewalld"))), reason="needs firewalld (make setup)"
)
_START_S = 30
_SERVICE = re.compile('<(?:service name|include service)="(.+?)"')
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>{address}</listen>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow receive_sender="*"/>
  </policy>
</busconfig>
"""


class FirewalldProcess:
    """firewalld and its bus. `address`: of the bus, for ``DBUS_SYSTEM_BUS_ADDRESS``. `zones`: the folder of zones."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:path={folder / 'bus'}"
        self.zones = folder / "etc" / "zones"
        self._folder = folder
        self._log: IO[bytes] = (folder / "log").open("wb")
        self._running: list[subprocess.Popen[bytes]] = []
        usr = UNPACKED / "usr" if UNPACKED.exists() else Path("/usr")
        self._env = {"PATH": f"{usr}/sbin:{usr}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        self._env |= {"PYTHONPATH": f"{usr}/lib/python3/dist-packages", "DBUS_SYSTEM_BUS_ADDRESS": self.address}
        self._configs = ["--system-config", str(folder / "etc"), "--default-config", str(folder / "usr")]
        self.zones.mkdir(parents=True)
        _link_defaults(usr / "lib" / "firewalld", folder / "usr")
        config = (UNPACKED if UNPACKED.exists() else Path("/")) / "etc/firewalld/firewalld.conf"
        (folder / "etc" / "firewalld.conf").write_text(config.read_text())
        (folder / "bus.conf").write_text(_BUS.format(address=self.address))
        self.bus = self._start("dbus-daemon", "--nofork", "--nopidfile", f"--config-file={folder / 'bus.conf'}")
        try:
            self._wait((folder / "bus").exists, "the message bus")
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start firewalld and wait until it guards."""
        own = str(self._folder / "own.log")
        self.process = self._start("firewalld", "--nofork", "--nopid", "--log-file", own, *self._configs)
        self._wait(self._guards, "firewalld")

    def _guards(self) -> bool:
        """Ask as `firewall-cmd --state` does, which takes as long as the start of firewalld."""
        name = "org.fedoraproject.FirewallD1"
        asked = subprocess.run(
            [
                *("dbus-send", f"--bus={self.address}", "--print-reply=literal", f"--dest={name}"),
                *(
                    "/" + name.replace(".", "/"),
                    "org.freedesktop.DBus.Properties.Get",
                    f"string:{name}",
                    "string:state",
                ),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        return "RUNNING" in asked.stdout

    def end(self) -> None:
        """End firewalld, which takes its rules away."""
        self.process.terminate()
        self.process.wait(_START_S)

    def choose(self, link: str, zone: str) -> None:
        self.command(f"--zone={zone}", f"--add-interface={link}")

    def forget(self, link: str) -> None:
        self.command("--zone=netplug", f"--remove-interface={link}")

    def lose_bus(self) -> None:
        self.bus.kill()
        self.bus.wait(_START_S)

    def command(self, *options: str, check: bool = True) -> str:
        """Return what firewall-cmd says."""
        command = ("firewall-cmd", *options)
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, check=check)
        return done.stdout.strip()

    def close(self) -> None:
        for process in reversed(self._running):
            process.kill()
            process.wait(_START_S)
        self._log.close()

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, env=self._env, stdout=self._log, stderr=self._log)
        self._running.append(process)
        return process

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_S
        while not ready():
            assert time.monotonic() < deadline, f"{what} does not start:\n{(self._folder / 'log').read_text()}"
            time.sleep(0.02)


def _link_defaults(whole: Path, folder: Path) -> None:
    """Give firewalld its defaults, but of 220 services only those in its zones: to read all takes half its start."""
    (folder / "services").mkdir(parents=True)
    for kind in whole.iterdir():
        if kind.name != "services":
            (folder / kind.name).symlink_to(kind)
    wanted = [text.read_text() for kind in ("zones", "policies") for text in (whole / kind).glob("*.xml")]
    while wanted:
        for name in _SERVICE.findall(wanted.pop()):
            link, service = (place / "services" / f"{name}.xml" for place in (folder, whole))
            if not link.is_symlink():
                link.symlink_to(service)
                wanted.append(service.read_text())  # it may include others
