"""The man pages: one for each command, valid for man(1), and they say what `--help` says."""

import re
import subprocess
from pathlib import Path
from shutil import which

import pytest
from packaging_tool import tool

from netplug.cli.command_tree import commands
from netplug.config import Settings

man, manual = tool("man"), tool("manual")
PAGES = man.pages()
COMMANDS = list(commands().walk())


def rendered(page: str) -> str:
    """Return a page as a reader sees it, on one line."""
    done = subprocess.run(
        ["groff", "-man", "-rLL=2000n", "-Tutf8", "-P-cbou"],
        input=PAGES[page],
        check=True,
        capture_output=True,
        text=True,
    )
    return " ".join(done.stdout.translate({0x2010: "-", 0x2212: "-"}).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    for name, content in PAGES.items():
        (folder / name).write_text(content)
    return folder


def test_each_command_has_a_page() -> None:
    names = {f"{'-'.join(it.path)}.1" for it in COMMANDS}
    assert set(PAGES) == {*names, "netplug.toml.5"}
    assert {"netplug.1", "netplug-attach.1", "netplug-network.1", "netplug-network-create.1"} <= names


@pytest.mark.skipif(which("man") is None or which("groff") is None, reason="there is no man(1) here")
def test_man_warns_of_no_page(folder: Path) -> None:
    """As lintian calls it (groff-message)."""
    for name in PAGES:
        command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(folder / name)]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80"}
        )
        assert (done.returncode, done.stderr) == (0, ""), name
        assert done.stdout.count("\n") > 50, name


@pytest.mark.skipif(which("mandoc") is None, reason="there is no mandoc here")
def test_mandoc_warns_of_no_page(folder: Path) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *map(str, sorted(folder.iterdir()))],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(which("lexgrog") is None, reason="there is no lexgrog(1) here")
def test_each_page_has_a_description_for_apropos(folder: Path) -> None:
    done = subprocess.run(["lexgrog", *map(str, sorted(folder.iterdir()))], check=True, capture_output=True, text=True)
    assert len(re.findall(r'^\S+: "netplug\S* - \S.*"$', done.stdout, re.MULTILINE)) == len(PAGES)


@pytest.mark.skipif(which("groff") is None, reason="there is no groff here")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda it: it.words)
def test_page_says_all_that_help_says(command: object) -> None:
    said = rendered(f"{'-'.join(command.path)}.1")
    for words in (command.summary, *command.paragraphs, *(it.help for it in (*command.arguments, *command.options))):
        assert " ".join(words.split()) in said
    for option in command.options:
        assert all(flag in said for flag in option.flags)


def test_commands_of_the_examples_exist_with_their_flags() -> None:
    known = {it.words: {flag for option in it.options for flag in option.flags} for it in COMMANDS}
    lines = [line for lines in manual.EXAMPLES.values() for line in lines if line.startswith("netplug ")]
    assert len(lines) > 5
    for line in lines:
        words = line.removesuffix(" &").split()
        path = " ".join(words[:3]) if " ".join(words[:3]) in known else " ".join(words[:2])
        assert {word for word in words if word.startswith("--")} <= known[path], line


@pytest.mark.skipif(which("groff") is None, reason="there is no groff here")
def test_page_of_settings_has_each_setting_with_its_variable() -> None:
    said = rendered("netplug.toml.5")
    for name in Settings.model_fields:
        assert re.search(rf" {name} \((string|boolean|array of strings)\) [A-Zsdc]", said), name
        assert f"NETPLUG_{name.upper()}" in said


def test_settings_without_a_flag_are_those_that_are_described_here() -> None:
    assert {it.name for it in manual.settings() if not it.flag} == set(manual.WITHOUT_FLAG)
    assert all(it.help for it in manual.settings())


def test_page_has_nothing_that_roff_takes_for_its_own() -> None:
    assert man.text(r".a 'b' \c") == r"\&.a \(aqb\(aq \ec"
    assert man.prose("use --run-dir, not-this") == r"use \fB\-\-run\-dir\fR, not-this"


def test_two_builds_are_equal() -> None:
    assert man.pages() == PAGES
    assert all(re.search(r'^\.TH \S+ [15] "2\d{3}-\d\d-\d\d" "netplug \d', page) for page in PAGES.values())
