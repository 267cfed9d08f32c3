"""Commands of the documents, pasted into a terminal as a reader does.

A block of commands is a fenced block of the language `console`. A line that begins with a prompt is a command: `# ` or
`$ `, or `a# ` on host a of a scene with several. It goes on where a line ends in a backslash, and where the prompt is
`> `. Other lines are what the document shows of the output; nothing is compared where it shows none. `…` stands for
anything, alone on a line for any number of lines. `^C` on a line is a key that the reader presses when he has seen what
is shown before it. A command ends with 0, unless its comment names another `exit code`.

After a comment `<!-- file: PATH -->` the reader saves the block that follows, of any language, as that file.

A comment `<!-- scene: NAME -->` says where the blocks after it run, up to the next such comment: one after the other,
in one place (`scenes.py`). Lines with a prompt inside the comment run before, unseen by the reader.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEY = "^C"
_SCENE = re.compile(r"<!-- scene: ([a-z ]+?)\s*(-->|$)")
_FILE = re.compile(r"<!-- file: (\S+) -->")
_PROMPT = re.compile(r"([a-z]?)[#$] (.*)")
_EXIT = re.compile(r"\s#.*\bexit code (\d+)")
_HEADING = re.compile(r"#+ (.*)")
_FENCE = re.compile(r"\s*```(\w*)")

_VOLATILE = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME"),
    (r"\b\d\d:\d\d:\d\d(\.\d+)?", "TIME"),
    (r"\b[0-9a-f]{64}\b", "ID"),
    (r"\b(?=[0-9a-f]*\d)[0-9a-f]{12}\b", "ID"),
    (r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC"),
    (r"\b\d+(\.\d+)? (ms|s)\b", "DURATION"),
    (r"\btime[=<]\S+", "DURATION"),
    (r"(?<=[.:\w]:)[3-6]\d{4}\b", "PORT"),
    (r"\b(seq|ack) \d+", "NUMBER"),
    (r"\b(?=[a-f]*\d)[0-9a-f]{8}\b", "ID"),
    (r"^[ ─-╿-]+$", ""),
)
"""What differs from one run to the next, wherever it stands; and lines in tables, which are drawn on terminals only."""


@dataclass(frozen=True)
class Command:
    """A command, on which host of the scene, what the document shows of its output, and how it ends."""

    host: str
    line: str
    shown: tuple[str, ...] = ()

    @property
    def interrupted(self) -> bool:
        return self.shown[-1:] == (KEY,)

    @property
    def code(self) -> int:
        found = _EXIT.search(self.line)
        return int(found[1]) if found else 0

    def shows(self, printed: str) -> bool:
        """Tell whether the output is what the document shows."""
        shown = [_steady(line) for line in self.shown[: -1 if self.interrupted else None]]
        if not shown:
            return True
        lines = [_steady(line) for line in printed.splitlines()]
        wanted = "".join(_pattern(line) for line in (*shown, *["…"] * self.interrupted) if line)
        return re.fullmatch(wanted, "".join(f"{line}\n" for line in lines if line)) is not None


def _steady(line: str) -> str:
    for pattern, word in _VOLATILE:
        line = re.sub(pattern, word, line)
    return " ".join(line.split())


def _pattern(line: str) -> str:
    return r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*?") + r"\n"


@dataclass(frozen=True)
class Block:
    """A block of commands, by its document, the heading above it, and its number there."""

    name: str
    commands: tuple[Command, ...]


@dataclass(frozen=True)
class Part:
    """The blocks of a document that run in one place; `scene` is empty where the document names none."""

    name: str
    scene: str
    before: tuple[Command, ...]
    blocks: tuple[Block, ...]


def documents() -> list[Path]:
    """Return the documents that users read, by name."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def parts(document: Path) -> list[Part]:
    """Return a document's blocks, by scene."""
    reader = _Reader(document.relative_to(ROOT).as_posix())
    for line in document.read_text().splitlines():
        reader.read(line)
    return [part for part in reader.close() if part.blocks]


@dataclass
class _Reader:
    """Reads a document line by line."""

    document: str
    heading: str = ""
    fence: str = ""
    scene: str = ""
    hidden: bool = False
    file: str = ""
    lines: list[str] = field(default_factory=list)
    before: tuple[Command, ...] = ()
    blocks: list[Block] = field(default_factory=list)
    found: list[Part] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)

    def read(self, line: str) -> None:
        if self.hidden:
            self._hidden(line)
        elif found := _FENCE.match(line):
            self._fenced(found[1])
        elif self.fence:
            self.lines.append(line)
        elif found := _SCENE.match(line):
            self._ends(found[1])
            self.hidden = not found[2]
        elif found := _FILE.match(line):
            self.file = found[1]
        elif found := _HEADING.match(line):
            self.heading = re.sub(r"[^\w -]", "", found[1].lower()).replace(" ", "-")

    def _hidden(self, line: str) -> None:
        if line.rstrip().endswith("-->"):
            self.hidden = False
            self.before = tuple(commands(self.lines))
            self.lines = []
        else:
            self.lines.append(line)

    def _fenced(self, language: str) -> None:
        if not self.fence:
            self.fence = language or "none"
        else:
            if self.file:
                self.blocks.append(Block(f"{self.document}: {self.file}", (_saved(self.file, self.lines),)))
            elif self.fence == "console":
                self.blocks.append(Block(self._name(), tuple(commands(self.lines))))
            self.fence = self.file = ""
        self.lines = []

    def _name(self) -> str:
        name = f"{self.document}#{self.heading}"
        count = self.names[name] = self.names.get(name, 0) + 1
        return name if count == 1 else f"{name}-{count}"

    def _ends(self, scene: str) -> None:
        name = self.blocks[0].name if self.blocks else ""
        self.found.append(Part(name, self.scene, self.before, tuple(self.blocks)))
        self.scene, self.before, self.blocks, self.lines = scene, (), [], []

    def close(self) -> list[Part]:
        assert not self.fence, f"{self.document}: a fenced block has no end"
        self._ends("")
        return self.found


def _saved(path: str, lines: list[str]) -> Command:
    return Command("", "\n".join((f"cat >{path} <<'END OF FILE'", *lines, "END OF FILE")))


def commands(lines: list[str]) -> Iterator[Command]:
    """Return the commands of a block's lines.

    >>> [it.line for it in commands(["# echo a \\\\", "    b", "a b", "# cat <<END", "> here", "> END", "here"])]
    ['echo a \\\\\\n    b', 'cat <<END\\nhere\\nEND']
    """
    host = typed = ""
    shown: list[str] = []
    for line in lines:
        found = _PROMPT.fullmatch(line)
        if typed.endswith("\\"):
            typed += f"\n{line}"
        elif found:
            if typed:
                yield Command(host, typed, tuple(shown))
            host, typed, shown = found[1], found[2], []
        elif line.startswith("> ") and not shown:
            typed += f"\n{line[2:]}"
        elif line.strip():
            shown.append(line.strip())
    if typed:
        yield Command(host, typed, tuple(shown))
