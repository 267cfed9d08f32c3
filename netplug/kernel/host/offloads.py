"""What a link leaves to its device, by the ioctl of ethtool(8) (linux/ethtool.h)."""

import ctypes
import socket
import struct

from netplug.kernel import libc
from netplug.kernel.host.api import Offloads

_SIOCETHTOOL = 0x8946
_GDRVINFO, _GSTRINGS, _GSSET_INFO, _GFEATURES = 0x03, 0x1B, 0x37, 0x3A
_FEATURES = 4
"""ETH_SS_FEATURES."""
_NAME_BYTES = 32
_DRIVER = struct.Struct("=I32s160x")
"""struct ethtool_drvinfo, as far as the driver's name."""
_BLOCK = struct.Struct("=IIII")
"""struct ethtool_get_features_block: available, requested, active, never_changed."""
_IFREQ = struct.Struct("@16sP16x")


def offloads(link: str) -> Offloads:
    """Return what a link leaves to its device; nothing if there is no such link, or its driver tells nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            driver = _ask(sock, link, _DRIVER.pack(_GDRVINFO, b""))
            names = _names(sock, link)
            blocks = -(-len(names) // 32)
            found = _ask(sock, link, struct.pack("=II", _GFEATURES, blocks) + bytes(_BLOCK.size * blocks))
        except OSError:
            return Offloads()
    active = [_BLOCK.unpack_from(found, 8 + at * _BLOCK.size)[2] for at in range(blocks)]
    features = frozenset(name for at, name in enumerate(names) if active[at // 32] & 1 << at % 32)
    return Offloads(_text(_DRIVER.unpack_from(driver)[1]), features)


def _names(sock: socket.socket, link: str) -> list[str]:
    counted = _ask(sock, link, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _FEATURES, 0))
    (count,) = struct.unpack_from("=I", counted, 16)
    found = _ask(sock, link, struct.pack("=III", _GSTRINGS, _FEATURES, count) + bytes(_NAME_BYTES * count))
    return [_text(found[12 + at * _NAME_BYTES :][:_NAME_BYTES]) for at in range(count)]


def _ask(sock: socket.socket, link: str, request: bytes) -> bytes:
    """Send a request of ethtool, and return the same structure as the kernel filled it in.

    Raises:
        OSError: the kernel, or the driver, refused.
    """
    data = ctypes.create_string_buffer(request, len(request))
    parcel = ctypes.create_string_buffer(_IFREQ.pack(link.encode(), ctypes.addressof(data)), _IFREQ.size)
    libc.call("ioctl", sock.fileno(), ctypes.c_ulong(_SIOCETHTOOL), parcel)
    return data.raw


def _text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode(errors="replace")
