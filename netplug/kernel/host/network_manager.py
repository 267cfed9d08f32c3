"""Asks NetworkManager by D-Bus which links it manages (NetworkManager's D-Bus reference, version 1).

A link that another program made is "external" to it: it shows the link, and changes nothing.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from netplug.kernel import message_bus

if TYPE_CHECKING:
    from dbus_fast.aio import MessageBus

_NAME = "org.freedesktop.NetworkManager"
_PATH = "/org/freedesktop/NetworkManager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_NOTHING = "/"
_EXTERNAL = 0x80
"""NM_ACTIVATION_STATE_FLAG_EXTERNAL."""


class _UnansweredError(Exception):
    """NetworkManager, or the bus, gave an error."""


async def manages(links: Collection[str]) -> Mapping[str, bool] | None:
    """Return which links it manages itself; links that it does not know are missing. None: it cannot be asked."""
    try:
        bus = await message_bus.connect()
    except ConnectionError:
        return None
    from dbus_fast.errors import DBusFastError  # noqa: PLC0415

    try:
        await _call(bus, _PATH, f"{_PROPERTIES}.Get", "ss", _NAME, "Version")
        return await _managed(bus, links)
    except (OSError, EOFError, DBusFastError, _UnansweredError):
        return None
    finally:
        bus.disconnect()


async def _managed(bus: "MessageBus", links: Collection[str]) -> Mapping[str, bool]:
    found = {}
    for link in sorted(links):
        with suppress(_UnansweredError):
            found[link] = await _is_managed(bus, link)
    return found


async def _is_managed(bus: "MessageBus", link: str) -> bool:
    device = await _call(bus, _PATH, f"{_NAME}.GetDeviceByIpIface", "s", link)
    if not await _property(bus, device, "Device", "Managed"):
        return False
    active = await _property(bus, device, "Device", "ActiveConnection")
    return active == _NOTHING or not await _property(bus, active, "Connection.Active", "StateFlags") & _EXTERNAL


async def _property(bus: "MessageBus", path: str, interface: str, name: str) -> Any:
    found = await _call(bus, path, f"{_PROPERTIES}.Get", "ss", f"{_NAME}.{interface}", name)
    return found.value


async def _call(bus: "MessageBus", path: str, member: str, signature: str, *body: object) -> Any:
    from dbus_fast import MessageType  # noqa: PLC0415

    reply = await message_bus.ask(bus, _NAME, path, member, signature, *body)
    if reply.message_type is not MessageType.METHOD_RETURN:
        raise _UnansweredError
    return reply.body[0]
