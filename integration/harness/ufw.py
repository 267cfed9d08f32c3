"""ufw inside a host, as it is after its installation and `ufw enable`."""

from .host import Host
from .unpacked import FOLDER, lay_over

UNPACKED = FOLDER / "ufw"


class Ufw:
    """A ufw that guards a host: it denies what comes in and what is forwarded. It ends with its host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        lay_over(host, UNPACKED)
        self("--force", "enable")

    def __call__(self, *args: str) -> str:
        """Run its command and return what it printed."""
        return self.host.output("ufw", *args)
