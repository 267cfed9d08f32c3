"""A terminal on a host: a shell that a user types into, with job control and keys."""

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
from time import monotonic

from .host import Host
from .pasted import KEY, Command
from .wait import wait_until

ROWS, COLUMNS = 50, 250
START_S = 30
COMMAND_S = 120
_MARK = "@prompt "
_PROMPT = re.compile(rf"\r?\n?{_MARK}(\d+)@ ")
"""What runs in the background may print behind it."""
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SHELL = ("setsid", "--ctty", "bash", "--norc", "--noprofile", "--noediting", "-i")


class Terminal:
    """A shell of root on a host, in an own session; it ends with its host, or by `close`."""

    def __init__(self, host: Host, *, folder: str, columns: int = COLUMNS) -> None:
        self.screen = ""
        """What the last command printed, with its colours."""
        self._behind = ""
        self._screen, line = os.openpty()
        fcntl.ioctl(line, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        attributes = termios.tcgetattr(line)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(line, termios.TCSANOW, attributes)
        own = {"PS1": f"\\n{_MARK}$?@ ", "PS2": "", "TERM": "xterm"}
        self._shell = subprocess.Popen(
            host.inside(["env", f"--chdir={folder}", *_SHELL]),
            stdin=line,
            stdout=line,
            stderr=line,
            env=host.env | own,
            start_new_session=True,
        )
        os.close(line)
        self._read("", START_S)

    def type(self, command: Command) -> tuple[str, int]:
        """Type a command, wait for its end, and return what it printed, and its exit code.

        Raises:
            AssertionError: it did not end in time; holds what it has printed.
        """
        os.write(self._screen, f"{command.line}\n".encode())
        if not command.interrupted:
            return self._read(command.line, COMMAND_S)
        printed = self._shown(command)
        os.write(self._screen, b"\x03")
        rest, code = self._read(command.line, COMMAND_S)
        return printed + rest, 0 if code == 128 + 2 else code

    def _shown(self, command: Command) -> str:
        """Wait until all has been printed that the document shows before the key."""
        printed = ""

        def seen() -> bool:
            nonlocal printed
            printed += self._more(0.1)
            return bool(printed.strip()) and command.shows(f"{_plain(printed)}\n")

        try:
            wait_until(seen, COMMAND_S)
        except AssertionError:
            raise AssertionError(f"{command.line}: printed before {KEY}:\n{_plain(printed)}") from None
        return printed

    def _read(self, line: str, timeout_s: float) -> tuple[str, int]:
        deadline = monotonic() + timeout_s
        printed = ""
        while not (found := _PROMPT.search(printed)):
            if monotonic() > deadline:
                raise AssertionError(
                    f"{line or 'the shell'}: no prompt within {timeout_s:g} s, but:\n{_plain(printed)}"
                )
            printed += self._more(0.2)
        self.screen, self._behind = printed[: found.start()], printed[found.end() :]
        return _plain(self.screen), int(found[1])

    def _more(self, timeout_s: float) -> str:
        if self._behind:
            more, self._behind = self._behind, ""
            return more
        ready, _, _ = select.select([self._screen], [], [], timeout_s)
        try:
            return os.read(self._screen, 65536).decode(errors="replace") if ready else ""
        except OSError as exc:
            raise AssertionError(f"the shell has ended ({exc})") from None

    def close(self) -> None:
        """Hang up: the shell ends, and what it left in the background does with the host."""
        os.close(self._screen)
        self._shell.wait(START_S)


def _plain(printed: str) -> str:
    return _COLOURS.sub("", printed).replace("\r\n", "\n").replace("\r", "\n")
