"""Logging: structlog for netplug, and the standard library's loggers of libraries in the same format.

Everything goes to stderr, one event per line. Tracebacks are plain text without local variables: these may contain
environment variables and labels, which must not be logged.
"""

import contextlib
import logging
import sys
from collections.abc import Sequence
from typing import ClassVar, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

from netplug.errors.printable import printable

LOG = "the log of netplug: journalctl -u netplug, or what netplug serve prints"
"""Where to find the log, for messages."""

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(log_format: LogFormat = "console", level: LogLevel = "info", *, lasting: bool = False) -> None:
    """Send netplug's events from `level` on, and those of libraries from "warning" on, to stderr.

    A second call replaces the first. uvicorn needs `log_config=None`; otherwise it installs handlers of its own.
    `lasting`: only `reconfigure` comes. Then each logger is assembled once; else at each line, also one below `level`.
    """
    shared: tuple[Processor, ...] = (
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    )
    ending = _ending(log_format, sys.stderr)
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_Factory(sys.stderr),
        cache_logger_on_first_use=lasting,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, _LEVELS[level]))


def reconfigure(log_format: LogFormat, level: LogLevel) -> None:
    """Change what a lasting configuration set."""
    for name in _Factory.assembled:
        # structlog keeps an assembled logger as this attribute of the one that a module has, which is `log` here.
        made = getattr(sys.modules.get(name), "log", None)
        if made is not None:
            vars(made).pop("bind", None)
    _Factory.assembled.clear()
    configure(log_format, level, lasting=True)


def _ending(log_format: LogFormat, stream: TextIO) -> Sequence[Processor]:
    if log_format == "json":
        return (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str))
    renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
    return (_one_line, renderer)


def _one_line(_: object, __: str, event: EventDict) -> EventDict:
    """Escape what a library says of others' data; the renderer does that with values."""
    event["event"] = printable(str(event.get("event", "")))
    return event


class _Logger(structlog.WriteLogger):
    """A writer with the name of its module, for `add_logger_name`."""

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__(stream)
        self.name = name

    def msg(self, message: str) -> None:
        """Write a line. One that cannot be written, as to a full disk, is lost; what it tells of goes on."""
        with contextlib.suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


class _Factory:
    """Makes a logger for each module, and knows for which."""

    assembled: ClassVar[set[str]] = set()

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, *args: str) -> _Logger:
        name = args[0] if args else "netplug"
        self.assembled.add(name)
        return _Logger(self._stream, name)
