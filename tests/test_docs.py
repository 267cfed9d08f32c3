"""The documents say what the code does: tables in them are made from the code's own."""

import inspect
import json
import pkgutil
import re
from pathlib import Path

import typer
from packaging_tool import tool
from typer.core import TyperGroup

from netplug.cli.app import app
from netplug.cli.command_tree import commands
from netplug.config import Settings
from netplug.frontends.rest.description import OPERATIONS

reference = tool("reference")
ROOT = Path(__file__).parent.parent


def test_written_documents_are_up_to_date() -> None:
    """What has changed is said by `make docs`, which a commit that changes a command, an option or the API runs."""
    outdated = [path.name for path, content in reference.documents().items() if path.read_text() != content]
    assert not outdated, "run: make docs"


def test_each_operation_of_the_api_is_described() -> None:
    api = reference.rest.described()
    found = {
        f"{method.upper()} {path.removeprefix('/v1')}": operation
        for path, operations in api["paths"].items()
        for method, operation in operations.items()
    }
    assert set(found) == set(OPERATIONS), "netplug/frontends/rest/description.py says what each operation does"
    assert all(operation["responses"].keys() - {"422"} == operation["responses"].keys() for operation in found.values())
    assert not {name for name in api["components"]["schemas"] if "__" in name}, "two bodies have one name"
    used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(api)))
    assert used == set(api["components"]["schemas"])


def test_reference_has_each_command_and_setting() -> None:
    text = (ROOT / "docs/reference.md").read_text()
    headings = re.findall(r"^###+ (netplug .*)$", text, re.MULTILINE)
    assert headings == [it.words for it in commands().walk() if len(it.path) > 1]
    assert {f"| `{name}` | " for name in Settings.model_fields} <= set(re.findall(r"^\| `\w+` \| ", text, re.MULTILINE))


def test_readme_names_only_targets_that_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text())) <= targets


def test_links_between_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "changes").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_each_test_that_security_names_exists() -> None:
    text = (ROOT / "docs/security.md").read_text()
    found = set()
    for folder, file, name in re.findall(r"`(tests/(?:contract/)?)?(test_\w+\.py)(?:::(\w+))?`", text):
        path = ROOT / (folder or "integration/") / file
        assert path.exists(), path
        assert not name or f"def {name}(" in path.read_text(), f"{file}::{name}"
        found.add((file, name))
    assert len(found) > 40


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_to_headings_lead_to_one() -> None:
    found = 0
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text()):
            assert anchor in anchors((document.parent / target) if target else document), f"{document.name}: #{anchor}"
            found += 1
    assert found > 10


def test_events_that_documents_name_are_logged() -> None:
    code = "".join(path.read_text() for path in (ROOT / "netplug").rglob("*.py"))
    events = set(re.findall(r"log\.\w+\(\s*\"([a-z_]+\.[a-z_.]+)\"", code))
    subjects = {event.partition(".")[0] for event in events}
    named = {
        name
        for folder in ("docs", "changes")
        for document in (ROOT / folder).rglob("*.md")
        for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", document.read_text())
        if name.partition(".")[0] in subjects and not name.endswith((".py", ".sock"))
    }
    modules = {name for name in named if (ROOT / "netplug" / f"{name.replace('.', '/')}.py").exists()}
    assert len(named - modules) > 10
    assert {name for name in named - modules if f'"{name}"' not in code} == set()


def console_commands() -> list[tuple[str, list[str]]]:
    """Return what the documents' console blocks and code spans run of `netplug`, each with where it stands."""
    found = []
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = document.read_text().replace("\\\n", " ")
        blocks = [line for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        prompted = [line.partition("# ")[2] for line in blocks if re.match(r"[a-z]?[#$] ", line)]
        spans = re.findall(r"`(netplug [a-z][^`]*)`", text.replace("\n", " "))
        for line in (*(re.sub(r"\s+#.*", "", line) for line in prompted), *spans):
            for part in re.split(r"&&|\||&", line):
                words = part.split()
                if words[:1] == ["netplug"]:
                    found.append((f"{document.name}: {part.strip()}", words[1:]))
    return found


def test_commands_of_the_documents_exist_with_their_flags() -> None:
    commands = console_commands()
    assert len(commands) > 50
    for where, words in commands:
        command = typer.main.get_command(app)
        rest = list(words)
        while isinstance(command, TyperGroup):
            assert rest, where
            name = rest.pop(0)
            assert name in command.commands, where
            command = command.commands[name]
        known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        own = rest[: rest.index("--")] if "--" in rest else rest
        flags = {word.partition("=")[0] for word in own if word.startswith("-")}
        assert flags <= known, where


def walk() -> list[str]:
    """Return the functions that docs/architecture.md names in its walk of one `docker run`, by dotted path."""
    text = (ROOT / "docs/architecture.md").read_text()
    part = text[text.index("## The walk of one") : text.index("## A plan, and what follows")]
    return re.findall(r"`((?:[a-z_]+\.)+[A-Z]?\w+(?:\.\w+)?)`", part)


def test_functions_that_the_walk_of_a_docker_run_meets_exist() -> None:
    named = walk()
    assert len(named) > 20
    for path in named:
        found = pkgutil.resolve_name(f"netplug.{path}")
        assert callable(found) or inspect.ismodule(found), path


def test_places_of_the_architecture_exist_and_every_package_has_one() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    part = text[text.index("## The house") : text.index("## The walk of one")]
    places = set(re.findall(r"^\| (.*?) \|", part, re.MULTILINE)) - {"place", "---"}
    named = {path for row in places for path in re.findall(r"`([^`]+)`", row)}
    assert all((ROOT / path).exists() for path in named), named
    packages = {f"netplug/{it.name}/" for it in (ROOT / "netplug").iterdir() if (it / "__init__.py").exists()}
    assert packages - {"netplug/drivers/", "netplug/ipam/", "netplug/dns/"} <= named
