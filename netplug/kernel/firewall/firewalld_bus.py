"""firewalld's D-Bus API (firewalld.dbus(5)). A connection lasts as long as what is asked by it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from netplug.kernel import message_bus

if TYPE_CHECKING:
    from dbus_fast import Variant
    from dbus_fast.aio import MessageBus

NAME = "org.fedoraproject.FirewallD1"
RUNTIME, PERMANENT = "/org/fedoraproject/FirewallD1", "/org/fedoraproject/FirewallD1/config"
"""Objects: what firewalld does at present, and what it begins with after each reload and start."""

_ERRORS = "org.freedesktop.DBus.Error."
_ABSENT = {f"{_ERRORS}NameHasNoOwner", f"{_ERRORS}ServiceUnknown", f"{_ERRORS}NoReply", f"{_ERRORS}Disconnected"}
_UNKNOWN = {f"{_ERRORS}UnknownMethod", f"{_ERRORS}UnknownInterface", f"{_ERRORS}UnknownObject"}


class UnavailableError(Exception):
    """firewalld cannot be asked, or lacks what is asked for."""


class AbsentError(UnavailableError):
    """firewalld is not on the message bus, or there is no bus."""


class RefusedError(Exception):
    """firewalld answered with an error, in its own words: "CODE: what"."""


class Bus:
    """A connection to the system's message bus, for calls of firewalld."""

    def __init__(self, bus: "MessageBus") -> None:
        self._bus = bus

    async def call(self, path: str, member: str, signature: str = "", *body: object) -> Any:
        """Call a method and return its first value, None if it has none. Does not start firewalld.

        Args:
            path: of the object.
            member: the method; before a dot, the rest of its interface's name.
            signature: the types of `body`.
            body: the arguments.

        Raises:
            UnavailableError, RefusedError
        """
        from dbus_fast import MessageType  # noqa: PLC0415

        try:
            reply = await message_bus.ask(self._bus, NAME, path, f"{NAME}.{member}", signature, *body)
        except (OSError, EOFError) as error:
            raise AbsentError(f"the message bus failed ({error})") from error
        if reply.message_type is MessageType.METHOD_RETURN:
            return reply.body[0] if reply.body else None
        words = str(reply.body[0]).partition("\n")[0] if reply.body else str(reply.error_name)
        if reply.error_name in _ABSENT:
            raise AbsentError("firewalld is not on the message bus")
        if reply.error_name in _UNKNOWN:
            raise UnavailableError(f"this version of firewalld does not know {member.rpartition('.')[2]!r}")
        raise RefusedError(words)


def variants(settings: Mapping[str, object]) -> dict[str, "Variant"]:
    """Return settings as a method takes them (``a{sv}``): texts, truth values and lists of texts."""
    from dbus_fast import Variant  # noqa: PLC0415

    types = {str: "s", bool: "b", list: "as"}
    return {name: Variant(types[type(value)], value) for name, value in settings.items()}


@asynccontextmanager
async def connected() -> AsyncIterator[Bus]:
    """Connect to the system's message bus for the time of a block.

    Raises:
        AbsentError: there is no bus, or it lets nobody in.
    """
    try:
        bus = await message_bus.connect()
    except ConnectionError as error:
        raise AbsentError(f"there is no message bus ({error})") from error
    try:
        yield Bus(bus)
    finally:
        bus.disconnect()
