"""Every command in README.md and docs/ is pasted into a terminal, and does what the document says."""

import re

import pytest
from harness.pasted import ROOT, Block, Command, Part, documents, parts
from harness.scenes import SCENES, Place, scene
from harness.wait import wait_until

PARTS = [part for document in documents() for part in parts(document)]
NOT_RUN = {
    "README.md#install": "test_deb.py installs the package",
    "README.md#in-a-clone": "sets .venv up, from a package registry; and `make test` runs this very test",
    "docs/firewall.md#changes-by-others": "the daemon heals it before the command has started",
    "docs/installing.md#debian-package": "test_deb.py installs the package, on a machine with systemd",
    "docs/installing.md#try-it": "test_deb.py pastes them after the installation",
    "docs/installing.md#clean-up": "test_deb.py pastes them",
    "docs/installing.md#why-it-has-its-own-libraries": "needs a package registry",
    "docs/installing.md#pipx": "needs a package registry; test_install_service.py has an installation by pip",
    "docs/plugin.md#as-dockers-managed-plugin": "needs Debian's packages; test_managed_plugin.py builds and uses it",
    "docs/plugin.md#as-dockers-managed-plugin-2": "names a registry; test_managed_plugin.py has one",
    "docs/plugin.md#commands": "test_managed_plugin.py types it",
    "docs/plugin.md#settings": "needs the plugin; test_managed_plugin.py has it",
    "docs/plugin.md#upgrade-stop-remove": "names a registry; test_managed_plugin.py has one",
    "docs/plugin.md#upgrade-stop-remove-2": "needs the plugin; test_managed_plugin.py has it",
    "docs/podman.md#podman-45-and-later-by-netavark": "needs podman 4.5; test_netavark.py calls the driver",
    "docs/running.md#as-a-service-of-systemd": "needs a package registry",
    "docs/running.md#as-a-service-of-systemd-2": "needs systemd as process 1; test_systemd.py has one",
    "docs/running.md#who-may-use-the-api": "makes a group, and needs systemd as process 1; test_who_may.py has a group",
    "docs/store.md#a-damaged-database": "needs systemd as process 1; test_store_damage.py types it",
    "docs/store.md#state-and-store": "needs three members of etcd; contract/test_etcd_access.py has certificates",
}
"""Documents, blocks and commands that cannot run here, by name, with the reason."""
NO_CONNECTION = 7
"""Exit code of curl(1)."""
LANGUAGES = {"console", "json", "mermaid", "nft", "none", "python", "text", "toml", "yaml"}
"""Those of fenced blocks. What a reader pastes into a shell is `console`."""

RUN = [part for part in PARTS if part.scene]


@pytest.mark.parametrize("part", RUN, ids=[part.name for part in RUN])
def test_commands_of_the_documents_do_what_they_say(part: Part) -> None:
    with scene(part.scene) as place:
        for command in part.before:
            _paste(place, command, "before")
        for block in part.blocks:
            for command in block.commands:
                if not _listed(block, command):
                    _paste(place, command, block.name)


def _listed(block: Block, command: Command) -> str:
    """Return the name by which a command is listed; empty if it is run."""
    names = (f"{block.name}: {command.line.partition(' #')[0].strip()}", block.name, block.name.partition("#")[0])
    return next((name for name in names if name in NOT_RUN), "")


def _paste(place: Place, command: Command, where: str) -> None:
    printed, code = place.type(command)
    if command.line.startswith("curl ") and code == NO_CONNECTION != command.code:
        # Here a server in a container has less time to start than it takes a reader to paste the next line.
        wait_until(lambda: place.type(command)[1] != NO_CONNECTION, 10, f"{where}: {command.line}: is answered")
        printed, code = place.type(command)
    assert code == command.code, f"{where}: {command.line}: exit code {code}, and not {command.code}\n{printed}"
    assert command.shows(printed), (
        f"{where}: {command.line}: the document shows\n{_indented(command.shown)}\nand it printed\n"
        f"{_indented(tuple(printed.splitlines()))}"
    )


def _indented(lines: tuple[str, ...]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def test_every_block_of_commands_runs_or_is_listed_with_the_reason() -> None:
    commands = [(part, block, command) for part in PARTS for block in part.blocks for command in block.commands]
    silent = [f"{block.name}: {it.line}" for part, block, it in commands if not part.scene and not _listed(block, it)]
    assert not silent, "no scene, and not listed"
    assert set(NOT_RUN) == {_listed(block, it) for _, block, it in commands} - {""}, "listed, and not there"
    assert all(NOT_RUN.values())


def test_scenes_of_the_documents_exist() -> None:
    assert {part.scene for part in RUN} <= set(SCENES)


def test_commands_stand_in_blocks_that_are_run() -> None:
    for document in documents():
        fences = re.findall(r"^\s*```(\S+)", document.read_text(), re.MULTILINE)
        assert set(fences) <= LANGUAGES, document.relative_to(ROOT)
