"""The units as files: systemd understands all of them, and confines the service."""

import json
import subprocess
from pathlib import Path
from shutil import which

import pytest
from harness.booted import UNITS
from harness.netplugd import COMMAND

pytestmark = pytest.mark.skipif(not which("systemd-analyze"), reason="needs systemd (make setup)")

EXPOSURE = 4.0
"""As docs/running.md says."""


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """The units with the command of this environment."""
    for path in UNITS.glob("netplug.*"):
        (tmp_path / path.name).write_text(path.read_text().replace("/usr/bin/netplug ", f"{COMMAND} "))
    return sorted(map(str, tmp_path.iterdir()))


def analyzed(*args: str) -> str:
    done = subprocess.run(["systemd-analyze", "--no-pager", *args], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_units_are_a_socket_and_a_service(units: list[str]) -> None:
    assert [Path(unit).name for unit in units] == ["netplug.service", "netplug.socket"]


def test_systemd_has_nothing_to_say_against_the_units(units: list[str]) -> None:
    assert [line for line in analyzed("verify", "--man=no", *units).splitlines() if "netplug" in line] == []


def test_service_is_confined_as_the_documents_say(units: list[str]) -> None:
    said = analyzed("security", "--offline=true", f"--threshold={round(EXPOSURE * 10)}", units[0])
    assert f"Overall exposure level for netplug.service: {EXPOSURE}" in said
    listed = json.loads(analyzed("security", "--offline=true", "--json=short", units[0]).partition("\n#")[0])
    unset = {it["json_field"] for it in listed if it["set"] is False}
    assert not unset & {"NoNewPrivileges", "MemoryDenyWriteExecute", "ProtectKernelModules", "RestrictNamespaces_user"}
