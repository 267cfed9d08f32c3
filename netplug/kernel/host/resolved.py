"""systemd-resolved by D-Bus (org.freedesktop.resolve1(5)): a link of ours has the server of a domain.

The settings belong to the link: they end with it, and systemd-resolved keeps them over its own restart.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from netplug.errors import NetplugError
from netplug.kernel import message_bus
from netplug.kernel.host.api import Authority

if TYPE_CHECKING:
    from dbus_fast.aio import MessageBus

_NAME = "org.freedesktop.resolve1"
_PATH = "/org/freedesktop/resolve1"
_MANAGER = f"{_NAME}.Manager"
_BUS = "org.freedesktop.DBus"
_BUSY = f"{_NAME}.LinkBusy"
_OFF = ("SetLinkLLMNR", "SetLinkMulticastDNS", "SetLinkDNSOverTLS", "SetLinkDNSSEC")
"""What the link shall not do. Names of containers are not signed, and are asked on this host alone."""


async def answers() -> bool:
    """Return whether it is on the message bus."""
    try:
        async with _connected() as bus:
            return bool(await _call(bus, "NameHasOwner", "s", _NAME, of=(_BUS, "/org/freedesktop/DBus", _BUS)))
    except NetplugError:
        return False


async def lead(authority: Authority) -> bool:
    """Have it ask a server for the names of a domain, by way of a link; return whether it did not.

    Raises:
        NetplugError: it cannot be asked, or refuses.
    """
    index = _index(authority.link)
    wanted = [socket.AF_INET, authority.address.packed, authority.port, ""]
    async with _connected() as bus:
        link = await _call(bus, "GetLink", "i", index)
        servers, domains = [
            (await _call(bus, "Get", "ss", f"{_NAME}.Link", name, of=(_NAME, link, f"{_BUS}.Properties"))).value
            for name in ("DNSEx", "Domains")
        ]
        if [list(map(_plain, it)) for it in servers] == [wanted] and [list(it) for it in domains] == [
            [authority.domain, True]
        ]:
            return False
        await _call(bus, "SetLinkDNSEx", "ia(iayqs)", index, [wanted])
        await _call(bus, "SetLinkDomains", "ia(sb)", index, [[authority.domain, True]])
        await _call(bus, "SetLinkDefaultRoute", "ib", index, False)
        for method in _OFF:
            await _call(bus, method, "is", index, "no")
    return True


async def forget(authority: Authority) -> None:
    """Have it forget the settings of a link. If it does not answer, they end with the link."""
    with suppress(NetplugError, OSError):
        async with _connected() as bus:
            await _call(bus, "RevertLink", "i", socket.if_nametoindex(authority.link))


async def begins_anew() -> None:
    """Wait until it is on the message bus anew; for ever without a bus."""
    from dbus_fast import Message, MessageType  # noqa: PLC0415

    begun = asyncio.Event()

    def hear(message: "Message") -> None:
        if message.member == "NameOwnerChanged" and message.message_type is MessageType.SIGNAL:
            name, _, owner = message.body
            if name == _NAME and owner:
                begun.set()

    with suppress(NetplugError):
        async with _connected() as bus:
            bus.add_message_handler(hear)
            rule = f"type='signal',interface='{_BUS}',member='NameOwnerChanged',arg0='{_NAME}'"
            await _call(bus, "AddMatch", "s", rule, of=(_BUS, "/org/freedesktop/DBus", _BUS))
            waits = [asyncio.ensure_future(it) for it in (begun.wait(), _ended(bus))]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for it in waits:
                    it.cancel()
                await asyncio.gather(*waits, return_exceptions=True)
    if not begun.is_set():
        await asyncio.Event().wait()


async def _ended(bus: "MessageBus") -> None:
    await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, bytes | bytearray) else value


def _index(link: str) -> int:
    try:
        return socket.if_nametoindex(link)
    except OSError:
        raise NetplugError("unavailable", f"link {link!r}, by which the host asks for names, is missing") from None


@asynccontextmanager
async def _connected() -> AsyncIterator["MessageBus"]:
    try:
        bus = await message_bus.connect()
    except ConnectionError as exc:
        raise NetplugError("unavailable", f"there is no message bus to ask systemd-resolved by: {exc}") from exc
    try:
        yield bus
    finally:
        bus.disconnect()


async def _call(
    bus: "MessageBus", member: str, signature: str, *body: object, of: tuple[str, str, str] = (_NAME, _PATH, _MANAGER)
) -> Any:
    """Call a method and return its first value. `of`: name of the program, path and interface of its object."""
    from dbus_fast import MessageType  # noqa: PLC0415

    name, path, interface = of
    try:
        reply = await message_bus.ask(bus, name, path, f"{interface}.{member}", signature, *body)
    except (OSError, EOFError) as exc:
        raise NetplugError("unavailable", f"the message bus failed: {exc}") from exc
    if reply.message_type is MessageType.METHOD_RETURN:
        return reply.body[0] if reply.body else None
    words = str(reply.body[0]) if reply.body else str(reply.error_name)
    hint = ""
    if reply.error_name == _BUSY:
        hint = "systemd-networkd manages the link; netplug install-service installs a file that keeps it from that"
    elif str(reply.error_name).endswith("UnknownMethod"):
        hint = "systemd 246 or later is needed"
    raise NetplugError("unavailable", f"systemd-resolved refuses {member}: {words}", hint=hint)
