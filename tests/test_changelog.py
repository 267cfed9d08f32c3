"""CHANGELOG.md is what its fragments say; each has the form that CONTRIBUTING.md asks for."""

from pathlib import Path

import pytest
from packaging_tool import tool

from netplug import __version__

changelog = tool("changelog")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of fragments that is empty."""
    monkeypatch.setattr(changelog, "FOLDER", tmp_path)
    return tmp_path


def test_changelog_is_up_to_date() -> None:
    assert changelog.CHANGELOG.read_text() == changelog.changelog(), "run: make changelog"


def test_no_release_is_newer_than_the_present_version() -> None:
    assert changelog.version() == __version__
    folders = {it.name for it in changelog.FOLDER.iterdir() if it.is_dir()}
    assert set(changelog.RELEASED) <= folders
    assert max(map(changelog.number, folders)) <= changelog.number(__version__)


def test_entries_stand_by_area_and_then_by_number(folder: Path) -> None:
    (folder / "0.2.0").mkdir()
    (folder / "0.2.0" / "0002-b.md").write_text("# Names\n- Two,\n  long.\n- Three.\n\n# Docker\n- Four.\n")
    (folder / "0.2.0" / "0001-a.md").write_text("- One.\n")
    (folder / "0.2.0" / "0003-c.md").write_text("# Docker\n- Five.\n")
    said = changelog.changelog().partition("## 0.2.0 (")[2].partition("\n")[2]
    assert said == (
        "\n### Docker\n\n- Four.\n- Five.\n\n### Names\n\n- Two,\n  long.\n- Three.\n\n### Other\n\n- One.\n"
    )


def test_newer_releases_stand_first(folder: Path) -> None:
    for name in ("0.9.0", "0.10.0", "0.2.0"):
        (folder / name).mkdir()
        (folder / name / "0001-a.md").write_text("- One.\n")
    headings = [line for line in changelog.changelog().splitlines() if line.startswith("## ")]
    assert headings == ["## 0.10.0 (not released yet)", "## 0.9.0 (not released yet)", "## 0.2.0 (2026-11-28)"]


def test_new_fragments_move_to_the_present_version_with_their_links(folder: Path) -> None:
    (folder / "0001-a.md").write_text("- See [here](../docs/dns.md).\n")
    changelog.collect()
    assert [str(it.relative_to(folder)) for it in folder.rglob("*.md")] == [f"{__version__}/0001-a.md"]
    assert "- See [here](docs/dns.md)." in changelog.changelog().splitlines()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# Nonsense\n- One.\n", "'Nonsense' is no area; there are: Upgrading; "),
        ("One.\n", "'One.' is neither"),
        ("# Names\n", "'Names' has no entry"),
        ("", "'Other' has no entry"),
    ],
    ids=["area", "paragraph", "heading", "empty"],
)
def test_fragment_of_another_form_is_refused_and_stays(folder: Path, text: str, words: str) -> None:
    (folder / "0001-a.md").write_text(text)
    with pytest.raises(ValueError, match=f"^0001-a.md: {words}"):
        changelog.collect()
    assert (folder / "0001-a.md").exists()
