"""Socket filters: which packets a socket hears (Documentation/networking/filter.rst of the kernel).

The kernel translates a classic filter anew for each socket, which takes longer than to open and bind it, and two pages
of its memory. So a filter that thousands of sockets have is an eBPF program that they share. Where the kernel does not
let us load one (bpf(2): in a user namespace), they have the classic one.
"""

import ctypes
import os
import platform
import socket
import struct
import sys
from collections.abc import Iterable
from ctypes import addressof, create_string_buffer
from functools import cached_property

from netplug.kernel import libc

_SO_ATTACH_FILTER, _SO_ATTACH_BPF = 26, 50
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
_BPF_PROG_LOAD, _SOCKET_FILTER = 5, 1
_ATTRIBUTES = struct.Struct("=IIQQIIQII16s")
"""Of ``union bpf_attr``: what BPF_PROG_LOAD reads, up to the name."""
WHOLE = 0xFFFFFFFF
"""Bytes of a packet that is heard."""

Instruction = tuple[int, int, int, int]
"""Of classic BPF (linux/filter.h, struct sock_filter): code, instructions to skip if true, if false, value."""
LOAD, LOAD_HALF, LOAD_BYTE, AND, EQUAL, RETURN = 0x20, 0x28, 0x30, 0x54, 0x15, 0x06
"""Loads are of four bytes, two or one, in network order."""


def attach(sock: socket.socket, code: Iterable[Instruction]) -> None:
    """Give a socket a classic filter of its own, in place of the one that it has."""
    packed = _packed(code)
    buffer = create_string_buffer(packed, len(packed))
    _attach_classic(sock, buffer)


class Filter:
    """A filter that many sockets share; `code` may load words, compare for equality, and return."""

    def __init__(self, code: Iterable[Instruction]) -> None:
        self._code = tuple(code)
        packed = _packed(self._code)
        self._classic = create_string_buffer(packed, len(packed))

    def attach(self, sock: socket.socket) -> None:
        """Give it to a socket, in place of the one that it has."""
        if self._shared:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, self._shared)
        else:
            _attach_classic(sock, self._classic)

    def close(self) -> None:
        """Let go of the program; sockets that have it keep it, and the next one has it loaded anew."""
        if shared := self.__dict__.pop("_shared", b""):
            os.close(*struct.unpack("@i", shared))

    @cached_property
    def _shared(self) -> bytes:
        """The descriptor of the program, packed; nothing where there is none."""
        try:
            return struct.pack("@i", _load(_translated(self._code)))
        except OSError:
            return b""


def _packed(code: Iterable[Instruction]) -> bytes:
    # struct sock_filter has the value last.
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _attach_classic(sock: socket.socket, code: "ctypes.Array[ctypes.c_char]") -> None:
    # struct sock_fprog: number of instructions of 8 bytes, pointer to them.
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code) // 8, addressof(code)))


def _translated(code: Iterable[Instruction]) -> bytes:
    """Return the instructions of eBPF (Documentation/bpf/standardization/instruction-set.rst), of 8 bytes too.

    One for each, and one before: loads find the packet by register 6. A load past the end returns nothing.
    """
    keep = _instruction(0xBF, 6 | 1 << 4)
    body = list(code)
    at, places = 1, []
    for kind, *_ in body:
        places.append(at)
        at += 2 if kind in {RETURN, EQUAL} else 1
    found = [keep]
    for number, (kind, if_true, if_false, value) in enumerate(body):
        here = places[number]
        if kind == LOAD:
            found.append(_instruction(LOAD, value=value))
        elif kind == EQUAL:  # JMP32: jump if equal, and if not
            found.append(_instruction(0x16, 0, places[number + 1 + if_true] - here - 1, value))
            found.append(_instruction(0x56, 0, places[number + 1 + if_false] - here - 2, value))
        elif kind == RETURN:
            found += [_instruction(0xB4, value=value), _instruction(0x95)]
        else:
            raise ValueError(f"instruction {kind:#x} is not known")
    return b"".join(found)


def _instruction(code: int, registers: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhI", code, registers, offset, value)


def _load(program: bytes) -> int:
    """Load a program and return its descriptor.

    Raises:
        OSError: the kernel does not let us.
    """
    number = _SYS_BPF.get(platform.machine())
    if number is None or sys.byteorder != "little":
        raise OSError("bpf(2) is not known on this machine")
    code, licence = create_string_buffer(program, len(program)), create_string_buffer(b"Apache-2.0")
    packed = _ATTRIBUTES.pack(
        _SOCKET_FILTER, len(program) // 8, addressof(code), addressof(licence), 0, 0, 0, 0, 0, b"netplug"
    )
    attributes = create_string_buffer(packed, len(packed))
    return libc.call("syscall", number, _BPF_PROG_LOAD, attributes, len(packed))
