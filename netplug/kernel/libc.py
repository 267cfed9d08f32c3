"""Functions of the C library that Python lacks, or calls while holding the GIL."""

import ctypes
import os
from functools import cache
from typing import Any


def call(function: str, *args: Any) -> int:
    """Call a function that returns a negative number on failure. The GIL is released meanwhile.

    Raises:
        OSError: the function failed.
    """
    found: int = getattr(_libc(), function)(*args)
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
