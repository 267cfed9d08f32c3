"""Templates of issues and pull requests: forms that GitHub accepts, with commands that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from netplug.cli.command_tree import commands

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".github"
FORMS = sorted(path for path in FOLDER.glob("ISSUE_TEMPLATE/*.yml") if path.stem != "config")
TYPES = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def form(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_form_has_what_github_asks_for(path: Path) -> None:
    found = form(path)
    assert found["name"]
    assert found["description"]
    fields = [it for it in found["body"] if it["type"] != "markdown"]
    assert fields
    assert len({it["id"] for it in fields}) == len(fields)
    for it in found["body"]:
        assert it["type"] in TYPES
        assert it["attributes"]["value" if it["type"] == "markdown" else "label"]
        assert it["type"] != "dropdown" or len(it["attributes"]["options"]) > 1


def test_bug_report_asks_for_what_the_doctor_says() -> None:
    fields = {it.get("id"): it for it in form(FOLDER / "ISSUE_TEMPLATE/bug.yml")["body"]}
    assert "`netplug doctor --support`" in fields["support"]["attributes"]["description"]
    assert fields["doctor"]["validations"]["required"]
    assert fields["version"]["validations"]["required"]


def test_commands_that_templates_name_exist() -> None:
    texts = [path.read_text() for path in (*FOLDER.rglob("*.yml"), *FOLDER.glob("*.md"), *ROOT.glob("[CS]*.md"))]
    known = {it.words: {flag for option in it.options for flag in option.flags} for it in commands().walk()}
    named = [words for text in texts for words in re.findall(r"`netplug ([a-z][^`]*)`", text)]
    assert len(named) > 10
    for words in named:
        path = "netplug"
        for word in words.split():
            path = f"{path} {word}" if f"{path} {word}" in known else path
        assert path != "netplug", words
        assert {word for word in words.split() if word.startswith("--")} <= known[path], words


def test_targets_that_templates_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [path.read_text() for path in (FOLDER / "PULL_REQUEST_TEMPLATE.md", ROOT / "CONTRIBUTING.md")]
    named = {
        "".join(name)
        for text in texts
        for name in re.findall(r"^[#$] make ([a-z]+)|`make ([a-z]+)", text, re.MULTILINE)
    }
    assert {"check", "docs"} <= named <= targets
