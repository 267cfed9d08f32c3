"""The system's message bus (D-Bus). The library is imported with the first connection: most hosts never need it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbus_fast import Message
    from dbus_fast.aio import MessageBus


async def connect() -> "MessageBus":
    """Connect to it; the caller disconnects.

    Raises:
        ConnectionError: there is no bus, or it lets nobody in.
    """
    from dbus_fast import BusType  # noqa: PLC0415
    from dbus_fast.aio import MessageBus  # noqa: PLC0415
    from dbus_fast.errors import DBusFastError  # noqa: PLC0415

    bus = None
    try:
        bus = MessageBus(bus_type=BusType.SYSTEM)
        return await bus.connect()
    except (OSError, EOFError, DBusFastError) as error:
        if bus:
            bus.disconnect()
        raise ConnectionError(str(error)) from error


async def ask(bus: "MessageBus", name: str, path: str, member: str, signature: str = "", *body: object) -> "Message":
    """Call a method and return the reply, which may be an error. Does not start the program that is asked.

    Args:
        bus: a connection.
        name: of the program.
        path: of the object.
        member: the method, behind its interface and a dot.
        signature: the types of `body`.
        body: the arguments.

    Raises:
        OSError, EOFError: the bus failed.
    """
    from dbus_fast import Message, MessageFlag  # noqa: PLC0415

    interface, _, method = member.rpartition(".")
    message = Message(
        destination=name,
        path=path,
        interface=interface,
        member=method,
        signature=signature,
        body=list(body),
        flags=MessageFlag.NO_AUTOSTART,
    )
    return await bus.call(message)
