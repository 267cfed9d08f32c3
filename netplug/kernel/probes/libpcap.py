"""Compiles filters in tcpdump's language (pcap-filter(7)) by libpcap, which is called by ctypes."""

import ctypes
from functools import cache

from netplug.kernel.host.socket_filters import Instruction

PACKAGE = "libpcap0.8 (Debian), libpcap (Fedora, Arch)"
_NAMES = ("libpcap.so.0.8", "libpcap.so.1", "libpcap.so")
_ETHERNET = 1
"""DLT_EN10MB."""
_ANY_NETMASK = 0xFFFFFFFF
"""PCAP_NETMASK_UNKNOWN."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


def available() -> bool:
    """Whether libpcap is installed."""
    return _library() is not None


def compiled(text: str, most_bytes: int) -> list[Instruction]:
    """Compile a filter for Ethernet frames; of those that match it takes so many bytes.

    Raises:
        ValueError: libpcap does not understand it; says why.
        OSError: libpcap is not installed.
    """
    pcap = _library()
    if pcap is None:
        raise OSError("libpcap is not installed")
    handle = pcap.pcap_open_dead(_ETHERNET, most_bytes)
    if not handle:
        raise OSError("libpcap has no memory")
    try:
        program = _Program()
        if pcap.pcap_compile(handle, ctypes.byref(program), text.encode(), 1, _ANY_NETMASK):
            raise ValueError(pcap.pcap_geterr(handle).decode(errors="replace"))
        try:
            return [(it.code, it.jt, it.jf, it.k) for it in program.instructions[: program.length]]
        finally:
            pcap.pcap_freecode(ctypes.byref(program))
    finally:
        pcap.pcap_close(handle)


@cache
def _library() -> ctypes.CDLL | None:
    for name in _NAMES:
        try:
            pcap = ctypes.CDLL(name)
        except OSError:
            continue
        pcap.pcap_open_dead.restype = ctypes.c_void_p
        pcap.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
        pcap.pcap_compile.argtypes = (
            *(ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p),
            *(ctypes.c_int, ctypes.c_uint32),
        )
        pcap.pcap_geterr.restype = ctypes.c_char_p
        pcap.pcap_geterr.argtypes = (ctypes.c_void_p,)
        pcap.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
        pcap.pcap_close.argtypes = (ctypes.c_void_p,)
        return pcap
    return None
