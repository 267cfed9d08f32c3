"""Filters in tcpdump's language: by libpcap where it is installed, or else the common part of it by ourselves."""

from netplug.kernel.host.socket_filters import Instruction
from netplug.kernel.probes import filter_language, libpcap
from netplug.kernel.probes.capture import MOST_BYTES, whole
from netplug.kernel.probes.filter_language import FilterError


def compiled(text: str, most_bytes: int = MOST_BYTES) -> list[Instruction]:
    """Compile a filter for Ethernet frames; of those that match it takes so many bytes.

    Raises:
        FilterError: it is not understood; says why, and what to install where that would help.
    """
    if not text.strip():
        return whole(most_bytes)
    if libpcap.available():
        try:
            return libpcap.compiled(text, most_bytes)
        except ValueError as error:
            raise FilterError(str(error)) from error
    try:
        return filter_language.compiled(text, most_bytes)
    except FilterError as error:
        raise FilterError(f"{error}; for all of tcpdump's language install {libpcap.PACKAGE}") from error
