"""libnftables: nft(8)'s own parser and printer, in this process.

It is loaded when a table's text is first needed, which takes 1 ms. Its netlink socket belongs to the network namespace
of the thread that opens a `Nft`.
"""

import ctypes
from functools import cache
from types import TracebackType
from typing import Self

_NAME = "libnftables.so.1"
_TERSE = 1 << 11
"""NFT_CTX_OUTPUT_TERSE (nftables/libnftables.h): sets are printed without elements."""
_HANDLE = 1 << 3
"""NFT_CTX_OUTPUT_HANDLE: chains and rules are printed with their handles."""


class NftError(Exception):
    """nft refused commands; says why, as nft(8) does, in one line."""


class MissingError(NftError):
    """There is no libnftables on this host."""


class Nft:
    """A context, in the network namespace of this thread. Not thread-safe.

    Args:
        handles: print chains and rules with their handles.

    Raises:
        MissingError: there is no libnftables.
    """

    def __init__(self, *, handles: bool = False) -> None:
        self._library = _library()
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_output_set_flags(self._context, _TERSE | (_HANDLE if handles else 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.nft_ctx_free(self._context)

    def run(self, commands: str) -> str:
        """Run commands, as one transaction, and return what they print.

        Raises:
            NftError: they are wrong, or the kernel refused them.
        """
        code = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        printed = self._library.nft_ctx_get_output_buffer(self._context)
        errors = self._library.nft_ctx_get_error_buffer(self._context)
        if code:
            lines = errors.decode(errors="replace").splitlines()
            raise NftError(" ".join(line.strip() for line in lines if line.strip(" ^~")) or "nft failed")
        found: str = printed.decode(errors="replace")
        return found


def missing() -> str:
    """Return why libnftables cannot be used on this host; empty if it can."""
    try:
        _library()
    except MissingError as error:
        return str(error)
    return ""


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_NAME)
    except OSError as error:
        raise MissingError(f"{_NAME} cannot be loaded: {error}") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).restype = ctypes.c_char_p
    return library
