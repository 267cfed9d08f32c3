"""What to say where firewalld is in the way."""

from netplug.drivers.api import HostFacts
from netplug.engine.conditions import Difference

COMMAND = "firewall-cmd --permanent --zone=trusted --add-interface=np-+ && firewall-cmd --reload"


def blocked(host: HostFacts) -> tuple[Difference, ...]:
    """Return that firewalld drops what our networks send, with the command that helps, if it does."""
    words = f"knows nothing of the networks' links, and drops what they send: {COMMAND}"
    return (Difference("host", "firewalld", words),) if host.firewalld else ()
