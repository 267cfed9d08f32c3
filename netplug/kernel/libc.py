"""Calls of the C library that Python lacks, or makes otherwise than we need."""

import ctypes
import os
from functools import cache
from typing import Any


def call(function: str, *args: Any) -> int:
    """Return what a function returns that is negative when it fails, without holding other threads up meanwhile.

    Raises:
        OSError: it has failed.
    """
    found: int = getattr(_libc(), function)(*args)
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
