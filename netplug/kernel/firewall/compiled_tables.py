"""Tables of ours, compiled beforehand (``compiled_tables.json``): they are made without libnftables.

So a host needs none, and an older one, which does not know all that the texts say, does no harm. Values that rules
compare are in the byte order of the host, so these are for little-endian ones. A test keeps the file true to
``drivers/tables``.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from netplug.drivers import tables
from netplug.kernel.firewall.table_image import Image

TEXTS = (
    ("inet", "networks"),
    ("bridge", "antispoof"),
    ("inet", "host_mode"),
    ("inet", "vxlan_acl"),
    ("netdev", "fastpath"),
    ("ip", "resolver"),
)
"""Family and file of each."""
FILE = "compiled_tables.json"


def find(family: str, text: str) -> Image | None:
    """Return the compiled table of a text, None if there is none for this host."""
    found = _all().get(_key(family, text)) if sys.byteorder == "little" else None
    if found is None:
        return None
    return Image(
        found["family"],
        tuple((name, _bytes(body)) for name, body in found["sets"]),
        tuple((name, tuple(map(_bytes, elements))) for name, elements in found["inline"]),
        tuple((name, _bytes(body)) for name, body in found["chains"]),
        tuple((name, _bytes(body)) for name, body in found["rules"]),
    )


def written(images: Iterable[tuple[str, str, Image]]) -> str:
    """Return what the file says of compiled tables, each with its family and text."""
    said = {
        _key(family, text): {
            "family": image.family,
            "sets": [[name, _text(body)] for name, body in image.sets],
            "inline": [[name, [*map(_text, elements)]] for name, elements in image.inline],
            "chains": [[name, _text(body)] for name, body in image.chains],
            "rules": [[name, _text(body)] for name, body in image.rules],
        }
        for family, text, image in images
    }
    return json.dumps(said, indent=1) + "\n"


def texts() -> list[tuple[str, str]]:
    """Return family and text of each table of ours."""
    return [(family, tables.text(name)) for family, name in TEXTS]


@cache
def _all() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files(__package__).joinpath(FILE).read_text())
    return found


def _key(family: str, text: str) -> str:
    return hashlib.sha256(f"{family}\n{text}".encode()).hexdigest()[:16]


def _bytes(said: str) -> bytes:
    return base64.b64decode(said)


def _text(found: bytes) -> str:
    return base64.b64encode(found).decode()
