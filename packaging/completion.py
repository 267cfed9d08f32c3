"""Write the completion scripts for packages, in folders named by shell, as files named as the shells look for them.

python packaging/completion.py [FOLDER]     writes FOLDER/bash/netplug and so on; default: build/completion
"""

import sys
from pathlib import Path

from netplug.cli.completion.command import SHELLS, script

DEFAULT_FOLDER = Path(__file__).parent.parent / "build" / "completion"
NAMES = {"bash": "netplug", "zsh": "_netplug", "fish": "netplug.fish"}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    for shell in SHELLS:
        file = folder / shell / NAMES[shell]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script(shell))
