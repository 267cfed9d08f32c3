"""The picture of a session in README.md, drawn from a real one: `python integration/picture.py --write` (as root)."""

import re
import sys
from pathlib import Path

from harness.pasted import ROOT, Command
from harness.scenes import scene
from harness.terminal import Terminal
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURE = ROOT / "docs" / "session.svg"
COLUMNS = 124
LINES = (
    "docker network create -d pynet blue",
    "docker run -d --name web --network blue -p 8080:80 busybox httpd -f -h /etc",
    "docker run -d --name db --network blue busybox sleep 1h",
    "netplug ps",
    "iptables -I DOCKER-USER -p tcp --dport 80 -j DROP        # somebody's rule",
    "netplug trace outside host:8080",
)
_THEME = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [
        (72, 79, 88),
        (255, 123, 114),
        (63, 185, 80),
        (210, 153, 34),
        (88, 166, 255),
        (188, 140, 255),
        (57, 197, 207),
        (177, 186, 196),
    ],
)


def main() -> None:
    """Type the lines, and draw what is on the screen."""
    with scene("docker") as place, Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        terminal = Terminal(place.hosts[""], folder=place.folder, columns=COLUMNS)
        for line in LINES:
            console.print(Text.assemble(("# ", "dim"), (line, "bold")))
            terminal.type(Command("", line))
            console.print(Text.from_ansi(re.sub(r"\n\s*\n+", "\n\n", terminal.screen.replace("\r", "").strip("\n"))))
        terminal.close()
    drawn = console.export_svg(title="netplug", theme=_THEME, unique_id="session")
    # Nothing is loaded from elsewhere.
    drawn = re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL)
    text = "\n".join(line.rstrip() for line in drawn.splitlines() if line.strip()) + "\n"
    if "--write" in sys.argv:
        PICTURE.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
