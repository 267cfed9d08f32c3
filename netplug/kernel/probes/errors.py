"""Why a probe cannot be done."""


class ProbeError(Exception):
    """Says it in one line."""
