"""Why a text is not JSON, in words for its writer."""


def malformed(exc: ValueError | RecursionError) -> str:
    """Return the reason why `json.loads` refused a text.

    Text that is nested too deeply raises RecursionError, which is no ValueError.

    >>> malformed(RecursionError("maximum recursion depth exceeded"))
    'it is nested too deeply'
    """
    if isinstance(exc, RecursionError):
        return "it is nested too deeply"
    return "it is not UTF-8" if isinstance(exc, UnicodeError) else str(exc)
