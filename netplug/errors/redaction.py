"""Redaction of passwords in logs, errors, lock files, and the list of processes."""

import re
from pathlib import Path

_IN_URL = re.compile(r"(?<=://)[^\s/]*(?=@)")
_NAMED = re.compile(r"(?i)(password['\"]?\s*[=: ]\s*)[^\s,]+")


def without_passwords(text: str) -> str:
    """Return a text without users and passwords of URLs, and without values named password.

    >>> without_passwords("netplug serve --store 'etcd://np:a@b@db:2379,c:1' NETPLUG_ETCD_PASSWORD=x")
    "netplug serve --store 'etcd://***@db:2379,c:1' NETPLUG_ETCD_PASSWORD=***"
    """
    return _NAMED.sub(r"\1***", without_users(text))


def without_users(text: str) -> str:
    """Return a text without users and passwords of URLs."""
    return _IN_URL.sub("***", text)


def hide_arguments() -> None:
    """Overwrite passwords in this process's arguments, which every user can read (proc(5), cmdline)."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end are 48 and 49, from 1, with pid and name
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            before = memory.read(end - start)
            after = re.sub(rb"(?<=://)[^\s/\0]*(?=@)", lambda found: b"*" * len(found[0]), before)
            if after != before:
                memory.seek(start)
                memory.write(after)
    except (OSError, ValueError, IndexError):  # if the kernel forbids it, the arguments remain visible
        return
