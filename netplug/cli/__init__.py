"""The command ``netplug``: `main` is its entry point.

Client commands must start fast, so this package imports at the top level only what every command needs; the daemon,
its front ends and rich are imported by the command that uses them.
"""

import contextlib
import os
import sys
from collections.abc import Sequence

OK = 0
NO = 1
"""The daemon refused the request, or the command found differences."""
USAGE = 2
UNREACHABLE = 3
"""The daemon or its store cannot be reached."""
INTERRUPTED = 130
"""The exit code that a shell reports for a process ended by SIGINT; likewise 141 for SIGPIPE."""
PIPE_CLOSED = 141
COMPLETE = "__complete"
"""The hidden command that tells shells what completes a word (`netplug.cli.completion`)."""
DEBUG = "NETPLUG_DEBUG"
"""Environment variable: with any value, an internal error shows its traceback."""


class CliError(Exception):
    """An error for the user, with its exit code."""

    def __init__(self, code: int, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; print an error as one line on stderr."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except CliError as exc:
        return _fail(exc.code, str(exc))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as exc:
        if os.environ.get(DEBUG):
            raise
        return _fail(NO, f"internal error: {type(exc).__name__}: {exc} (set {DEBUG}=1 to see the traceback)")


def _run(argv: Sequence[str]) -> int:
    if argv[:1] == [COMPLETE]:
        from netplug.cli.completion.values import show  # noqa: PLC0415 - imports little, while a shell waits

        return show(argv[1:])
    import typer  # noqa: PLC0415 - inside, so that Ctrl-C during the import is handled too

    from netplug.cli.app import app  # noqa: PLC0415 - as above
    from netplug.cli.parameters import use_plain_values  # noqa: PLC0415 - as above

    use_plain_values()
    try:
        code = app(args=list(argv), prog_name="netplug", standalone_mode=False)
    except typer.TyperException as exc:
        message = exc.format_message()
        context = getattr(exc, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return _fail(USAGE, message[:1].lower() + message[1:].rstrip(".") + hint)
    return code if isinstance(code, int) else OK


def _fail(code: int, message: str) -> int:
    from netplug.errors.printable import printable  # noqa: PLC0415 - only a failure needs it

    line = printable(" ".join(message.split())).rstrip(".")
    with contextlib.suppress(OSError):  # stderr is closed; the exit code still says it
        print(f"netplug: {line}", file=sys.stderr, flush=True)  # noqa: T201 - this is the command's voice
    return code
