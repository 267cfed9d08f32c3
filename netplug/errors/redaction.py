"""Redaction of passwords in logs, errors, lock files, and the list of processes."""

import re
from pathlib import Path

# A password may have slashes and question marks: users do not encode them. So all up to the last @ is hidden.
_IN_URL = re.compile(r"(?<=://)[^\s'\"]*(?=@)")
_IN_WORD = re.compile(r"(?s)(?<=://).*(?=@)")
_IN_ARGUMENTS = re.compile(rb"(?<=://)[^\0]*(?=@)")
VALUE = r"""(?:"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s,;]+(?:[,;]+[^\s,;]+)*)"""
"""A value after a name: in quotes, or up to a blank, but for a comma or semicolon at the end."""
SECRET_WORDS = "passw(?:or)?d|secret|token|api_?key|credential"  # noqa: S105 - a pattern of names
_SECRET = re.compile(SECRET_WORDS, re.IGNORECASE)
_NAMED = re.compile(rf"(?i)(password['\"]?\s*[=: ]\s*){VALUE}")


def without_passwords(text: str) -> str:
    """Return a text without users and passwords of URLs, and without values named password.

    >>> without_passwords("netplug serve --store 'etcd://np:a@b@db:2379,c:1' NETPLUG_ETCD_PASSWORD=x")
    "netplug serve --store 'etcd://***@db:2379,c:1' NETPLUG_ETCD_PASSWORD=***"
    """
    return _NAMED.sub(r"\1***", without_users(text))


def without_users(text: str) -> str:
    """Return a text without users and passwords of URLs."""
    return _IN_URL.sub("***", text)


def is_secret(name: str) -> bool:
    """Tell by a name whether its value may be a secret.

    >>> is_secret("registryPassword"), is_secret("mtu")
    (True, False)
    """
    return _SECRET.search(name) is not None


def word_without_users(word: str) -> str:
    """Return a value, or an argument of a command, without user and password, whatever characters these have.

    >>> word_without_users("--store=etcd://np:a b/c@db:2379")
    '--store=etcd://***@db:2379'
    """
    return _IN_WORD.sub("***", word)


def hide_arguments() -> None:
    """Overwrite passwords in this process's arguments, which every user can read (proc(5), cmdline)."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end are 48 and 49, from 1, with pid and name
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            before = memory.read(end - start)
            after = _IN_ARGUMENTS.sub(lambda found: b"*" * len(found[0]), before)
            if after != before:
                memory.seek(start)
                memory.write(after)
    except (OSError, ValueError, IndexError):  # if the kernel forbids it, the arguments remain visible
        return
