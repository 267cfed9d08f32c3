"""Programs that take hold of links and of resolv.conf inside a host: NetworkManager, systemd-networkd and -resolved.

They are those that `packaging/setup.sh` unpacked: installed, they would take hold of this machine's.
"""

from collections.abc import Sequence
from shutil import which

import pytest

from .bus import start_bus
from .host import Host, Process
from .unpacked import FOLDER, lay_over
from .wait import wait_until

UNPACKED = FOLDER / "managers"
RESOLVCONF = FOLDER / "resolvconf"
_START_S = 40
_SYSTEMD = "/usr/lib/systemd"
_USERS = "grep -q '^{0}:' /etc/passwd || echo '{0}:x:{1}:{1}::/:/usr/sbin/nologin' >> /etc/passwd"
_GROUPS = "grep -q '^{0}:' /etc/group || echo '{0}:x:{1}:' >> /etc/group"

needs_managers = pytest.mark.skipif(
    not (which("dbus-daemon") and UNPACKED.exists()), reason="needs NetworkManager and systemd-resolved (make setup)"
)
needs_resolvconf = pytest.mark.skipif(not RESOLVCONF.exists(), reason="needs resolvconf (make setup)")


class Managers:
    """The programs of a host, laid over its own files, each to be started. They end with their host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        lay_over(host, UNPACKED)
        users = enumerate(("systemd-resolve", "systemd-network"), 990)
        lines = [line.format(name, number) for number, name in users for line in (_USERS, _GROUPS)]
        # As in a container without udev: else they wait for it.
        lines.append("mount -o bind,ro /sys /sys")
        lines.append("mkdir -p /run/systemd/resolve /run/systemd/netif /run/NetworkManager /var/lib/NetworkManager")
        lines.append("mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp")
        lines.append("chown -R systemd-resolve:systemd-resolve /run/systemd/resolve")
        lines.append("chown -R systemd-network:systemd-network /run/systemd/netif")
        lines.append("mount -t tmpfs tmpfs /var/lib/NetworkManager")
        host.run(["sh", "-ec", "\n".join(lines)])
        self.bus = start_bus(host)

    def resolved(self) -> Process:
        """Start systemd-resolved, which /etc/resolv.conf leads to."""
        self.host.run(["ln", "-sf", "/run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf"])
        process = self.host.popen([f"{_SYSTEMD}/systemd-resolved"], log="resolved.log")
        self._wait(process, ["resolvectl", "status"])
        return process

    def networkd(self) -> Process:
        """Start systemd-networkd."""
        process = self.host.popen([f"{_SYSTEMD}/systemd-networkd"], log="networkd.log")
        self._wait(process, ["networkctl", "list"])
        return process

    def network_manager(self) -> Process:
        """Start NetworkManager."""
        command = ["NetworkManager", "--no-daemon", "--pid-file=/run/NetworkManager/pid"]
        process = self.host.popen(command, log="networkmanager.log")
        self._wait(process, ["nmcli", "general"])
        return process

    def _wait(self, process: Process, question: Sequence[str]) -> None:
        def answers() -> bool:
            assert process.alive, f"{process.argv[0]} ended"
            return self.host.run(question, check=False).returncode == 0

        wait_until(answers, _START_S, process.argv[0])


class Resolvconf:
    """resolvconf(8) of a host, as its package leaves it, with a resolver of a DHCP client. It writes resolv.conf."""

    def __init__(self, host: Host, server: str) -> None:
        lay_over(host, RESOLVCONF)
        lines = (
            "mkdir -p /run/resolvconf/interface",
            "ln -s /run/resolvconf /etc/resolvconf/run",
            "ln -sf /run/resolvconf/resolv.conf /etc/resolv.conf",
            "resolvconf --enable-updates",
        )
        host.run(["sh", "-ec", "\n".join(lines)])
        host.run(["resolvconf", "-a", "eth0.dhclient"], stdin=f"nameserver {server}\nsearch lan\n")
