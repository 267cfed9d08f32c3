"""The system call bpf(2), which the C library lacks."""

import platform
import sys
from ctypes import addressof, create_string_buffer
from errno import ENOSYS
from struct import Struct, pack

from netplug.kernel import libc

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
_PROG_LOAD = 5
_LOAD = Struct("=IIQQIIQII16s")
"""``union bpf_attr`` for BPF_PROG_LOAD, up to the name."""


def call(command: int, attributes: bytes) -> int:
    """Call it with a ``union bpf_attr``.

    Raises:
        OSError: the kernel refuses.
    """
    number = _SYSCALL.get(platform.machine())
    if number is None or sys.byteorder != "little":
        raise OSError(ENOSYS, "bpf(2) is not known on this architecture")
    buffer = create_string_buffer(attributes, len(attributes))
    return libc.call("syscall", number, command, buffer, len(attributes))


def instruction(code: int, registers: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """Return an eBPF instruction (Documentation/bpf/standardization/instruction-set.rst)."""
    return pack("<BBhI", code, registers, offset, value)


def load(kind: int, program: bytes, licence: bytes) -> int:
    """Load a program and return its descriptor.

    Raises:
        OSError: the kernel refuses it.
    """
    code, terms = create_string_buffer(program, len(program)), create_string_buffer(licence)
    sizes = kind, len(program) // 8
    return call(_PROG_LOAD, _LOAD.pack(*sizes, addressof(code), addressof(terms), 0, 0, 0, 0, 0, b"netplug"))
