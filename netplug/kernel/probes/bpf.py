"""What a small tracing program needs: its instructions, and the calls of bpf(2) that load it and get its results.

The program is put together here, so no compiler is needed (Documentation/bpf/standardization/instruction-set.rst).
"""

import os
import struct
from ctypes import addressof, create_string_buffer

from netplug.kernel import bpf

_MAP_CREATE, _RAW_TRACEPOINT_OPEN, _LOOKUP_AND_DELETE = 0, 17, 21
_QUEUE, _RAW_TRACEPOINT = 22, 17
_MAP_PUSH, _PROBE_READ_KERNEL = 87, 113
R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FRAME = range(11)


def queue(size: int, most: int) -> int:
    """Return the descriptor of a queue of values of a size (since Linux 4.20)."""
    return bpf.call(_MAP_CREATE, struct.pack("=IIIII", _QUEUE, 0, size, most, 0))


class Popped:
    """Takes values from a queue."""

    def __init__(self, fd: int, size: int) -> None:
        self._value = create_string_buffer(size)
        self._attributes = struct.pack("=IIQQQ", fd, 0, 0, addressof(self._value), 0)

    def pop(self) -> bytes | None:
        """Return the next one; None if there is none."""
        try:
            bpf.call(_LOOKUP_AND_DELETE, self._attributes)
        except OSError:
            return None
        return self._value.raw


def attach(program: bytes, tracepoint: str) -> tuple[int, int]:
    """Load a program and have it run at a tracepoint; return both descriptors. It runs until the last is closed.

    Raises:
        OSError: the kernel refuses it.
    """
    loaded = bpf.load(_RAW_TRACEPOINT, program, b"GPL")
    name = create_string_buffer(tracepoint.encode())
    try:
        return loaded, bpf.call(_RAW_TRACEPOINT_OPEN, struct.pack("=QII", addressof(name), loaded, 0))
    except OSError:
        os.close(loaded)
        raise


class Program:
    """Instructions, and labels that they jump forward to."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, int, int, str]] = []
        self._labels: dict[str, int] = {}

    def _add(self, code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0, label: str = "") -> None:
        self._lines.append((code, to | of << 4, offset, value & 0xFFFFFFFF, label))

    def label(self, name: str) -> None:
        """Have jumps to this name come here."""
        self._labels[name] = len(self._lines)

    def copy(self, to: int, of: int) -> None:
        """Copy a register."""
        self._add(0xBF, to, of)

    def set(self, to: int, value: int) -> None:
        """Set a register to a number."""
        self._add(0xB7, to, value=value)

    def add(self, to: int, value: int) -> None:
        """Add a number to a register."""
        self._add(0x07, to, value=value)

    def add_register(self, to: int, of: int) -> None:
        """Add a register to another."""
        self._add(0x0F, to, of)

    def load(self, to: int, of: int, offset: int, size: int) -> None:
        """Load 2, 4 or 8 bytes."""
        self._add({2: 0x69, 4: 0x61, 8: 0x79}[size], to, of, offset)

    def store(self, to: int, offset: int, of: int, size: int) -> None:
        """Store 4 or 8 bytes of a register."""
        self._add({4: 0x63, 8: 0x7B}[size], to, of, offset)

    def combine(self, low: int, high: int) -> None:
        """Have a register be 32 bits out of its own lower 16 and those of another."""
        self._add(0x67, high, value=16)
        self._add(0x4F, low, high)

    def mask(self, to: int, value: int) -> None:
        """Keep some of 32 bits."""
        self._add(0x54, to, value=value)

    def if_equal(self, register: int, value: int, label: str) -> None:
        """Jump if 32 bits are equal."""
        self._add(0x16, register, value=value, label=label)

    def if_zero(self, register: int, label: str) -> None:
        """Jump if 64 bits are zero."""
        self._add(0x15, register, label=label)

    def read_kernel(self, frame_offset: int, size: int, pointer: int, offset: int = 0) -> None:
        """Read kernel memory to the stack; zeroes, if it cannot be read. Changes R0 to R5."""
        self.copy(R3, pointer)
        self.add(R3, offset)
        self.copy(R1, FRAME)
        self.add(R1, frame_offset)
        self.set(R2, size)
        self._add(0x85, value=_PROBE_READ_KERNEL)

    def push(self, fd: int, frame_offset: int) -> None:
        """Put a value on the stack into a queue."""
        self._add(0x18, R1, 1, value=fd)
        self._add(0)
        self.copy(R2, FRAME)
        self.add(R2, frame_offset)
        self.set(R3, 0)
        self._add(0x85, value=_MAP_PUSH)

    def end(self) -> None:
        """Return 0."""
        self.set(R0, 0)
        self._add(0x95)

    def packed(self) -> bytes:
        """Return the code."""
        found = []
        for at, (code, registers, offset, value, label) in enumerate(self._lines):
            jump = self._labels[label] - at - 1 if label else offset
            found.append(bpf.instruction(code, registers, jump, value))
        return b"".join(found)
