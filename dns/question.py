"""A question that is in order, as the fast and the careful path hand it to an upstream."""

from dataclasses import dataclass

from . import wire


@dataclass(slots=True)
class Question:
    """A question that is in order. `name`: lower-cased; `kind`: type and class; `end`: offset behind them in `data`.

    `size`: octets that the answer may have.
    """

    data: bytes
    name: bytes
    kind: bytes
    end: int
    size: int = wire.PLAIN_SIZE
    edns: bool = False
    dnssec: bool = False

    @property
    def recursive(self) -> bool:
        """Whether an upstream may be asked."""
        return bool(self.data[2] & 0x01)

    @property
    def unchecked(self) -> bool:
        """Whether answers that fail DNSSEC are wanted too."""
        return bool(self.data[3] & 0x10)
