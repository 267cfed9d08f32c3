"""A message bus (D-Bus) of a host of its own."""

from .host import Host, Process
from .wait import wait_until

_START_S = 40
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


def start_bus(host: Host) -> Process:
    """Start a message bus of the host's own, as the system's, on which everybody may do everything."""
    host.run(["mkdir", "-p", "/run/dbus"])
    (host.dir / "bus.conf").write_text(_BUS)
    bus = ["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={host.dir / 'bus.conf'}"]
    process = host.popen(bus, log="dbus.log")
    wait_until(host.path("/run/dbus/system_bus_socket").exists, _START_S, "the message bus")
    return process
