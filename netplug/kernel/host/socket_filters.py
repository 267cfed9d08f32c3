"""Socket filters: which packets a socket receives (Documentation/networking/filter.rst of the kernel).

The kernel translates a classic BPF filter for each socket. That takes longer than opening and binding the socket, and
two pages of kernel memory. So a filter of thousands of sockets is one eBPF program that they share. Where loading it is
not permitted (bpf(2): in a user namespace), each socket gets the classic filter.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Iterable
from ctypes import addressof, create_string_buffer
from functools import cached_property

from netplug.kernel import bpf

_SO_ATTACH_FILTER, _SO_ATTACH_BPF = 26, 50
_SOCKET_FILTER = 1
"""BPF_PROG_TYPE_SOCKET_FILTER."""
WHOLE = 0xFFFFFFFF
"""Return value that accepts all bytes of a packet."""

Instruction = tuple[int, int, int, int]
"""A classic BPF instruction (linux/filter.h, struct sock_filter): code, jump if true, jump if false, value."""
LOAD, LOAD_HALF, LOAD_BYTE, AND, EQUAL, RETURN = 0x20, 0x28, 0x30, 0x54, 0x15, 0x06
"""Loads read four, two or one bytes in network order."""


def attach(sock: socket.socket, code: Iterable[Instruction]) -> None:
    """Attach a classic filter to a socket, in place of its current one."""
    packed = _packed(code)
    buffer = create_string_buffer(packed, len(packed))
    _attach_classic(sock, buffer)


class Filter:
    """A filter that many sockets share. `code` may contain LOAD, EQUAL and RETURN."""

    def __init__(self, code: Iterable[Instruction]) -> None:
        self._code = tuple(code)
        packed = _packed(self._code)
        self._classic = create_string_buffer(packed, len(packed))

    def attach(self, sock: socket.socket) -> None:
        """Attach it to a socket, in place of its current filter."""
        if self._shared:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, self._shared)
        else:
            _attach_classic(sock, self._classic)

    def close(self) -> None:
        """Close the program. Sockets keep it; the next `attach` loads it again."""
        if shared := self.__dict__.pop("_shared", b""):
            os.close(*struct.unpack("@i", shared))

    @cached_property
    def _shared(self) -> bytes:
        """The packed descriptor of the program; empty if it cannot be loaded."""
        try:
            return struct.pack("@i", _load(_translated(self._code)))
        except OSError:
            return b""


def _packed(code: Iterable[Instruction]) -> bytes:
    # In struct sock_filter the value is the last field.
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _attach_classic(sock: socket.socket, code: "ctypes.Array[ctypes.c_char]") -> None:
    # struct sock_fprog: number of instructions of 8 bytes, pointer to them.
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code) // 8, addressof(code)))


def _translated(code: Iterable[Instruction]) -> bytes:
    """Return the filter as eBPF instructions (Documentation/bpf/standardization/instruction-set.rst).

    The first instruction copies the context to register 6, which loads use. A load past the packet's end drops it.
    """
    save_context = bpf.instruction(0xBF, 6 | 1 << 4)
    body = list(code)
    position, positions = 1, []
    for kind, *_ in body:
        positions.append(position)
        position += 2 if kind in {RETURN, EQUAL} else 1
    translated = [save_context]
    for number, (kind, if_true, if_false, value) in enumerate(body):
        here = positions[number]
        if kind == LOAD:
            translated.append(bpf.instruction(LOAD, value=value))
        elif kind == EQUAL:  # JMP32: jump if equal, and if not
            translated.append(bpf.instruction(0x16, 0, positions[number + 1 + if_true] - here - 1, value))
            translated.append(bpf.instruction(0x56, 0, positions[number + 1 + if_false] - here - 2, value))
        elif kind == RETURN:
            translated += [bpf.instruction(0xB4, value=value), bpf.instruction(0x95)]
        else:
            raise ValueError(f"instruction {kind:#x} is not supported")
    return b"".join(translated)


def _load(program: bytes) -> int:
    return bpf.load(_SOCKET_FILTER, program, b"Apache-2.0")
