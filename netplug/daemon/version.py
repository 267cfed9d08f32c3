"""The version of the installed package."""


def own_version() -> str:
    """Return the version of the installed package; "unknown" in a source tree."""
    from importlib import metadata  # noqa: PLC0415 - takes 20 ms, which most commands need not spend

    try:
        return metadata.version("netplug")
    except metadata.PackageNotFoundError:
        return "unknown"
