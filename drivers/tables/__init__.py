"""The constant tables of nf_tables, as text that an operator can read: one file a table, checked by ``nft -c -f FILE``.

A file has one table. Its comments (``#``) explain rules to readers of the file; those in quotes are printed by
``nft list table`` too.
"""

import re
from functools import cache
from importlib.resources import files

NETWORKS = "inet netplug"
ANTISPOOF = "bridge netplug"
HOST_MODE = "inet netplug-host"
_TABLE = re.compile(r"^table (\w+) ([\w-]+) \{\n(.*)^\}\n", re.DOTALL | re.MULTILINE)


@cache
def text(name: str) -> str:
    """Return what stands between the braces of a file's table, without comments of the file and blank lines."""
    found = _TABLE.search(files(__package__).joinpath(f"{name}.nft").read_text())
    if found is None:
        raise ValueError(f"{name}.nft has no table")
    lines = (line.strip() for line in found[3].splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))
