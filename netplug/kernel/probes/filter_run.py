"""Runs a filter on a packet that no socket has received: one that was dropped."""

from collections.abc import Sequence

from netplug.kernel.host.socket_filters import Instruction

_LOAD, _LOAD_INDEX, _STORE, _STORE_INDEX, _ARITHMETIC, _JUMP, _RETURN, _MOVE = range(8)
"""Classes of instructions (linux/bpf_common.h)."""
_SIZES = {0x00: 4, 0x08: 2, 0x10: 1}
_ABSOLUTE, _RELATIVE, _MEMORY, _LENGTH = 0x20, 0x40, 0x60, 0x80
_HEADER_LENGTH = 0xB1
_OF_INDEX = 0x08
_WORD = 0xFFFFFFFF


def accepts(code: Sequence[Instruction], packet: bytes) -> bool:
    """Tell whether a classic BPF program takes a packet. What reads beyond its end takes none, as in the kernel."""
    return result(code, packet) != 0


def result(code: Sequence[Instruction], packet: bytes) -> int:
    """Return how many bytes of a packet a program takes (Documentation/networking/filter.rst of the kernel)."""
    machine = _Machine(packet)
    at = 0
    while True:
        op, yes, no, value = code[at]
        at += 1
        kind = op & 7
        if kind == _RETURN:
            return machine.accumulator if op & 0x18 == 0x10 else value
        if kind == _JUMP:
            at += value if op == _JUMP else yes if machine.holds(op, value) else no
        elif not machine.step(op, kind, value):
            return 0


class _Machine:
    """The registers."""

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self.accumulator = 0
        self._index = 0
        self._memory = [0] * 16

    def holds(self, op: int, value: int) -> bool:
        """Whether a condition holds."""
        accumulator, operand = self.accumulator, self._index if op & _OF_INDEX else value
        conditions = {0x10: accumulator == operand, 0x20: accumulator > operand, 0x30: accumulator >= operand}
        return conditions.get(op & 0xF0, bool(accumulator & operand))

    def step(self, op: int, kind: int, value: int) -> bool:
        """Execute an instruction that is no jump; returns whether it was possible."""
        mode = op & 0xE0
        if op == _HEADER_LENGTH:
            self._index = (self._packet[value] & 15) * 4 if value < len(self._packet) else 0
            return value < len(self._packet)
        if kind == _LOAD and mode in {_ABSOLUTE, _RELATIVE}:
            place, size = value + (self._index if mode == _RELATIVE else 0), _SIZES[op & 0x18]
            self.accumulator = int.from_bytes(self._packet[place : place + size], "big")
            return place + size <= len(self._packet)
        loaded = {_MEMORY: self._memory[value & 15], _LENGTH: len(self._packet)}.get(mode, value)
        if kind == _LOAD:
            self.accumulator = loaded
        elif kind == _LOAD_INDEX:
            self._index = loaded
        elif kind in {_STORE, _STORE_INDEX}:
            self._memory[value & 15] = self.accumulator if kind == _STORE else self._index
        elif kind == _ARITHMETIC:
            return self._compute(op & 0xF0, self._index if op & _OF_INDEX else value)
        elif op == _MOVE:
            self._index = self.accumulator
        else:
            self.accumulator = self._index
        return True

    def _compute(self, operation: int, operand: int) -> bool:
        old = self.accumulator
        results = {
            0x00: old + operand,
            0x10: old - operand,
            0x20: old * operand,
            0x40: old | operand,
            0x50: old & operand,
            0x60: old << (operand & 31),
            0x70: old >> (operand & 31),
            0x80: -old,
            0xA0: old ^ operand,
        }
        if operation in {0x30, 0x90}:
            if not operand:
                return False
            results[operation] = old // operand if operation == 0x30 else old % operand
        self.accumulator = results[operation] & _WORD
        return True
