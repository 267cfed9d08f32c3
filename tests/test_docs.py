"""The documents say what the code does: tables in them are made from the code's own."""

import re
from pathlib import Path

import pytest

from netplug.drivers.options import OPTIONS

ROOT = Path(__file__).parent.parent


def options_table() -> str:
    rows = ["| key | modes | meaning (default) |", "|---|---|---|"]
    for option in OPTIONS:
        keys = " = ".join(f"`{key}`" for key in (option.key, *option.aliases))
        rows.append(f"| {keys} | {', '.join(option.modes) or 'all'} | {option.meaning} ({option.default}) |")
    return "\n".join(rows)


def test_readme_lists_the_options(request: pytest.FixtureRequest) -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    pattern = re.compile(r"(<!-- options:.*?-->\n)(.*?)(<!-- /options -->)", re.DOTALL)
    wanted = pattern.sub(lambda found: f"{found[1]}{options_table()}\n{found[3]}", text)
    if request.config.getoption("--update"):
        readme.write_text(wanted)
    else:
        assert text == wanted


def test_readme_names_only_targets_that_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text())) <= targets


def test_links_between_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
