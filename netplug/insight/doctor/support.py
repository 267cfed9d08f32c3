"""An archive for a bug report, without secrets.

What goes in is chosen, rather than what is left out: no environment, no labels, no process lists, no contents of files
of others. What is chosen is searched for secrets nevertheless.
"""

import io
import json
import os
import re
import tarfile
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from netplug.config import Settings
from netplug.errors.redaction import SECRET_WORDS, VALUE, is_secret, without_passwords
from netplug.store.access import without_password

HIDDEN = "***"
_SECRET_SETTINGS = frozenset({"etcd_user"})
_LEFT_OUT = frozenset({"labels", "env", "environment"})
"""Fields of JSON that users fill as they like."""
_KEYS = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_NAMED = re.compile(rf"(?i)\b((?:[a-z0-9_-]*(?:{SECRET_WORDS})[a-z0-9_-]*)['\"]?\s*[=:]\s*){VALUE}")
_MODE = 0o600


def settings_of(settings: Settings) -> dict[str, str]:
    """Return the settings as text, without secrets; of TLS files the paths only."""
    shown = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr) or name in _SECRET_SETTINGS or is_secret(name):
            given = value.get_secret_value() if isinstance(value, SecretStr) else value
            shown[name] = HIDDEN if given else ""
        elif name == "store":
            shown[name] = without_password(value)
        else:
            shown[name] = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return shown


def without_secrets(text: str, secrets: Collection[str] = ()) -> str:
    """Return a text without passwords, tokens and keys, as far as they can be recognised.

    `secrets`: known ones.

    >>> without_secrets("etcd://np:a@db:2379 api_token=x, password: y", ["y"])
    'etcd://***@db:2379 api_token=***, password: ***'
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _NAMED.sub(rf"\1{HIDDEN}", _KEYS.sub(HIDDEN, without_passwords(text)))


def chosen(value: Any, secrets: Collection[str] = ()) -> Any:
    """Return JSON without the fields that users fill as they like, and without secrets."""
    if isinstance(value, Mapping):
        return {key: chosen(it, secrets) for key, it in value.items() if key.lower() not in _LEFT_OUT}
    if isinstance(value, list):
        return [chosen(it, secrets) for it in value]
    return without_secrets(value, secrets) if isinstance(value, str) else value


def written(path: Path, name: str, parts: Mapping[str, Any], secrets: Collection[str] = ()) -> list[tuple[str, int]]:
    """Write an archive that only its owner can read, and return its files with their sizes.

    Args:
        path: of the archive; must not exist.
        name: of the folder in it.
        parts: text, or what is written as JSON, by name.
        secrets: known ones, which are in none of the files.

    Raises:
        OSError: it cannot be written.
    """
    files = list(_files(parts, secrets))
    with open(path, "xb", opener=_private) as out, tarfile.open(fileobj=out, mode="w:gz") as archive:
        for file, data in files:
            info = tarfile.TarInfo(f"{name}/{file}")
            info.size, info.mode, info.mtime = len(data), _MODE, int(time.time())
            archive.addfile(info, io.BytesIO(data))
    return [(file, len(data)) for file, data in files]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, _MODE)


def _files(parts: Mapping[str, Any], secrets: Collection[str]) -> Iterable[tuple[str, bytes]]:
    for name, value in sorted(parts.items()):
        if isinstance(value, str):
            yield f"{name}.txt", without_secrets(value, secrets).encode()
        else:
            yield f"{name}.json", json.dumps(chosen(value, secrets), indent=2, default=str).encode()
