"""Writes captures as Wireshark reads them: pcapng (draft-ietf-opsawg-pcapng)."""

import struct
from collections.abc import Iterable
from typing import Protocol

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER = 0x1A2B3C4D
_ETHERNET = 1
"""LINKTYPE_ETHERNET."""
_ANY_LENGTH = 0xFFFFFFFFFFFFFFFF
_COMMENT = 1
_SHB_OS, _SHB_USERAPPL = 3, 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _IF_FILTER, _IF_OS = 2, 3, 9, 11, 12
_EPB_FLAGS = 2
_ISB_IFRECV, _ISB_IFDROP = 4, 5
_INBOUND, _OUTBOUND = 1, 2
_NANOSECONDS = bytes((9,))
_MOST_OPTION = 0xFFFF


class Output(Protocol):
    """Where the file goes."""

    def write(self, data: bytes, /) -> object: ...


def _option(code: int, value: bytes) -> bytes:
    value = value[:_MOST_OPTION]
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) & 3)


def _options(found: Iterable[tuple[int, bytes]]) -> bytes:
    packed = b"".join(_option(code, value) for code, value in found if value)
    return packed + bytes(4) if packed else b""  # opt_endofopt


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


_PACKET_HEAD = struct.Struct("<IIIII")
_FLAGS = [(_EPB_FLAGS, struct.pack("<I", it)) for it in (_INBOUND, _OUTBOUND)]
_DIRECTION = [_options([it]) for it in _FLAGS]


class Writer:
    """Writes one section. `program`: what made the capture."""

    def __init__(self, output: Output, program: str) -> None:
        self._output = output
        self._interfaces = 0
        head = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _ANY_LENGTH)
        output.write(_block(_SECTION, head + _options([(_SHB_OS, b"Linux"), (_SHB_USERAPPL, program.encode())])))

    def interface(
        self, name: str, description: str, most_bytes: int, *, expression: str = "", comment: str = ""
    ) -> int:
        """Add an interface and return its number. `most_bytes`: of a packet. `expression`: the filter."""
        options = [
            (_COMMENT, comment.encode()),
            (_IF_NAME, name.encode()),
            (_IF_DESCRIPTION, description.encode()),
            (_IF_TSRESOL, _NANOSECONDS),
            (_IF_FILTER, b"\0" + expression.encode() if expression else b""),  # 0: a text as of libpcap
        ]
        self._output.write(_block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, most_bytes) + _options(options)))
        self._interfaces += 1
        return self._interfaces - 1

    def packet(self, interface: int, time_ns: int, data: bytes, length: int, *, sent: bool, comment: str = "") -> None:
        """Add a packet. `length`: that it had; `sent`: by the endpoint."""
        kept = len(data)
        head = _PACKET_HEAD.pack(interface, time_ns >> 32, time_ns & 0xFFFFFFFF, kept, length)
        options = _DIRECTION[sent] if not comment else _options([_FLAGS[sent], (_COMMENT, comment.encode())])
        self._output.write(_block(_PACKET, b"".join((head, data, bytes(-kept & 3), options))))

    def statistics(self, interface: int, time_ns: int, received: int, dropped: int) -> None:
        """Say at the end how many packets matched on an interface, and how many of them the kernel dropped."""
        options = _options([(_ISB_IFRECV, struct.pack("<Q", received)), (_ISB_IFDROP, struct.pack("<Q", dropped))])
        head = struct.pack("<III", interface, time_ns >> 32, time_ns & 0xFFFFFFFF)
        self._output.write(_block(_STATISTICS, head + options))
