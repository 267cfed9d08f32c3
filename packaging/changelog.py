"""Write CHANGELOG.md from the fragments in `changes/`: one folder a release, and in it one file a change.

A fragment that lies in `changes/` itself is not released yet: it moves into the folder of the present version. So a
change adds one small file, and two changes never touch the same lines.

    python packaging/changelog.py     moves new fragments, and writes CHANGELOG.md
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "changes"
CHANGELOG = ROOT / "CHANGELOG.md"
RELEASED = {"0.1.0": "2026-11-28", "0.2.0": "2026-11-28"}
"""The day of each release; one without a day is not released yet."""
OTHER = "Other"
"""The area of a fragment that names none."""
AREAS = (
    "Upgrading",
    "Installing",
    "Docker",
    "CNI, podman and bare namespaces",
    "Networks and ports",
    "Names",
    "Clusters",
    "Firewall",
    "Security",
    "Healing",
    "Finding faults",
    "Commands",
    "REST API",
    "Speed",
    "Drivers of other packages",
    OTHER,
)
"""What a fragment's headings may be, in the order of the file: first what everybody has to read."""
HEAD = """# Changes

What users notice, by release. [CONTRIBUTING.md](CONTRIBUTING.md#the-changelog) says how this file is written.
"""


def version() -> str:
    """Return the present version."""
    text = (ROOT / "netplug" / "__init__.py").read_text()
    (found,) = re.findall(r'^__version__ = "(.+)"', text, re.MULTILINE)
    return str(found)


def number(name: str) -> tuple[int, ...]:
    """Return a version's number, to sort by."""
    return tuple(map(int, name.split(".")))


def parts(fragment: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each area of a fragment with its entries, which may go over several lines.

    Raises:
        ValueError: the fragment is not of the form that CONTRIBUTING.md says.
    """
    area, entries = OTHER, list[str]()
    for line in fragment.read_text().rstrip().splitlines():
        if line.startswith("# "):
            if entries:
                yield area, entries
            area, entries = line[2:], []
            if area not in AREAS:
                raise ValueError(f"{fragment.name}: {area!r} is no area; there are: {'; '.join(AREAS)}")
        elif line.startswith("- "):
            entries.append(line)
        elif line.startswith("  ") and entries:
            entries[-1] += f"\n{line}"
        elif line:
            raise ValueError(f"{fragment.name}: {line[:60]!r} is neither '# AREA', '- ENTRY' nor its next line")
    if not entries:
        raise ValueError(f"{fragment.name}: {area!r} has no entry")
    yield area, entries


def release(folder: Path) -> str:
    """Return the section of a release: its fragments in the order of their numbers, by area."""
    found: dict[str, list[str]] = {}
    for fragment in sorted(folder.glob("*.md")):
        for area, entries in parts(fragment):
            found.setdefault(area, []).extend(entries)
    day = RELEASED.get(folder.name)
    blocks = [f"## {folder.name} ({day})" if day else f"## {folder.name} (not released yet)"]
    blocks += [f"### {area}\n\n" + "\n".join(found[area]) for area in AREAS if area in found]
    return "\n\n".join(blocks).replace("](../../", "](") + "\n"


def changelog() -> str:
    """Return the whole file, the newest release first."""
    folders = sorted((it for it in FOLDER.iterdir() if it.is_dir()), key=lambda it: number(it.name), reverse=True)
    return "\n".join((HEAD, *map(release, folders)))


def collect() -> None:
    """Move the fragments that are not released into the folder of the present version."""
    folder = FOLDER / version()
    for fragment in sorted(FOLDER.glob("*.md")):
        list(parts(fragment))
        folder.mkdir(exist_ok=True)
        (folder / fragment.name).write_text(fragment.read_text().replace("](../", "](../../"))
        fragment.unlink()


if __name__ == "__main__":
    try:
        collect()
        CHANGELOG.write_text(changelog())
    except ValueError as wrong:
        sys.exit(f"changelog: {wrong}")
