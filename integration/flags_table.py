"""Docker's network flags and what becomes of them in each mode: the table in docs/docker.md, and what its tests check.

``python integration/flags_table.py`` prints it, with ``--write`` into the document.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "docker.md"
BEGIN, END = "<!-- flags: python integration/flags_table.py --write -->\n", "<!-- /flags -->\n"
MODES = ("bridge", "host", "macvlan", "none")
SYSCTLS, IFNAME = "com.docker.network.endpoint.sysctls", "com.docker.network.endpoint.ifname"
WORKS, IGNORED, REFUSED = "works", "ignored", "refused: "


@dataclass(frozen=True)
class Row:
    """A flag. A cell is `WORKS`, `IGNORED`, or `REFUSED` with words of the message that the user sees.

    `since`: the first version of Docker that has it, where 20.10 has not. Then its test is in `tests/`, by a replay of
    what such a Docker asked for.
    """

    command: str
    flag: str
    bridge: str = WORKS
    host: str = WORKS
    macvlan: str = WORKS
    none: str = WORKS
    since: str = ""

    def cell(self, mode: str) -> str:
        return str(getattr(self, mode))

    @property
    def name(self) -> str:
        return f"{self.command} {self.flag}"


def row(command: str, flag: str, everywhere: str = WORKS, *, since: str = "", **modes: str) -> Row:
    """Return a row whose modes are alike but for those that are named."""
    return Row(command, flag, **(dict.fromkeys(MODES, everywhere) | modes), since=since)


TABLE: tuple[Row, ...] = (
    row("network create", "--subnet --gateway", none=IGNORED),
    row("network create", "--ip-range", none=IGNORED),
    row("network create", "--aux-address", none=IGNORED),
    row("network create", "--ipv6", none=IGNORED),
    row("network create", "--internal"),
    row("network create", "--ipam-driver pynet", none=IGNORED),
    row("network create", "--ipam-driver null"),
    row("network create", "--ipam-opt unknown=1", REFUSED + "unknown --ipam-opt 'unknown'"),
    row("network create", "--label"),
    row("network create", "--attachable"),
    row("network create", "--config-from"),
    row("network create", "--scope swarm", REFUSED + "cannot create a swarm scoped network"),
    row("network create", "--scope global", REFUSED + "This node is not a swarm manager"),
    row("network create", "--ingress", REFUSED + "Ingress network can only be global scope network"),
    row("network create", "--ipv4=false --ipv6", none=IGNORED, since="28.0"),
    row("network create", "-o unknown=1", REFUSED + "unknown option 'unknown'"),
    row("network connect", "--ip", none=IGNORED),
    row("network connect", "--ip6", none=IGNORED),
    row("network connect", "--link-local-ip", none=IGNORED),
    row("network connect", "--alias", none=IGNORED),
    row("network connect", "--link", host=IGNORED, none=IGNORED),
    row("network connect", "--gw-priority", none=IGNORED, since="28.0"),
    row("network connect", "--driver-opt unknown=1", REFUSED + "unknown option 'unknown'"),
    row("network disconnect", "-f"),
    row("run", "--ip", none=IGNORED),
    row("run", "--ip6", none=IGNORED),
    row("run", "--mac-address", none=IGNORED),
    row("run", "--link-local-ip", none=IGNORED),
    row("run", "--network NET --network NET2", since="25.0"),
    row("run", "--network name=NET,mac-address=MAC", none=IGNORED, since="25.0"),
    row("run", "--network name=NET,gw-priority=N", none=IGNORED, since="28.0"),
    row("run", f"--network name=NET,driver-opt={SYSCTLS}=…", none=IGNORED, since="27.0"),
    row("run", f"--network name=NET,driver-opt={IFNAME}=…", IGNORED, since="28.0"),
    row("run", "--network name=NET,driver-opt=vif.kind=fast", REFUSED + "unknown option 'vif.kind'", since="25.0"),
    row("run", "--hostname --domainname"),
    row("run", "--network-alias", host=IGNORED, none=IGNORED),
    row("run", "--link", host=IGNORED, none=IGNORED),
    row("run", "--dns --dns-search --dns-option"),
    row("run", "--add-host"),
    row("run", "-p", host=IGNORED, macvlan=IGNORED, none=IGNORED),
    row("run", "-P", host=IGNORED, macvlan=IGNORED, none=IGNORED),
    row("run", "--sysctl net.ipv4.ip_default_ttl=9"),
    row("run", "--network container:NAME"),
    row("run", "--restart always"),
)


def markdown() -> str:
    """Return the table as the document has it."""
    lines = ["| " + " | ".join(("docker", "flag", *MODES)) + " |", "|---" * (2 + len(MODES)) + "|"]
    for it in TABLE:
        cells = (it.cell(mode).replace("refused: ", "refused: *") for mode in MODES)
        shown = (cell + "*" if cell.startswith("refused") else cell for cell in cells)
        flag = f"`{it.flag}`" + f" (Docker {it.since})" * bool(it.since)
        lines.append("| " + " | ".join((f"`{it.command}`", flag, *shown)) + " |")
    return "\n".join(lines) + "\n"


def in_document() -> str:
    """Return the table that the document has."""
    return DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    if "--write" not in sys.argv:
        sys.stdout.write(markdown())
        return
    head, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(head + BEGIN + markdown() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
