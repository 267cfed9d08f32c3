"""Text of others, shown to a person: a terminal must not act on it, and a line must not become two."""

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""What netplug itself sends to a terminal (ECMA-48, SGR)."""


def printable(text: str) -> str:
    r"""Return a text with escapes in place of control characters, line ends, and what changes the direction of writing.

    >>> printable("web"), printable("\x1b[2Jé\n\u202e")
    ('web', '\\x1b[2Jé\\n\\u202e')
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def printable_lines(text: str) -> str:
    r"""Return lines with escapes as in `printable`; ends of lines, tabs and colours stay.

    >>> printable_lines("\x1b[1mname\x1b[0m\na\x1b[2J")
    '\x1b[1mname\x1b[0m\na\\x1b[2J'
    """
    if text.isprintable():
        return text
    parts, at = [], 0
    for found in _COLOUR.finditer(text):
        parts += [_kept(text[at : found.start()]), found[0]]
        at = found.end()
    return "".join((*parts, _kept(text[at:])))


def _kept(text: str) -> str:
    return "".join(char if char in "\n\t" else _shown(char) for char in text)


def _shown(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()
