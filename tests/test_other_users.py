"""What a command says to a user of the host who may not read the daemon's files."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doctor_host import name_server
from living import living

from netplug.cli import NO, UNREACHABLE, main

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")
NOBODY = 65534


@contextmanager
def another_user() -> Iterator[None]:
    """Be another user: without the capabilities too, since they go with user id 0 (capabilities(7))."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The state directory of a daemon that has run, in a folder that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="netplug-other-"))
    folder.chmod(0o755)
    for name, inside in (("STATE", "state"), ("PLUGIN", "plugins"), ("RUN", "run")):
        monkeypatch.setenv(f"NETPLUG_{name}_DIR", str(folder / inside))
    (folder / "netplug.toml").write_text("")
    monkeypatch.setenv("NETPLUG_CONFIG", str(folder / "netplug.toml"))
    with living(folder):
        pass
    with name_server() as address:
        monkeypatch.setenv("NETPLUG_DNS_UPSTREAM", address)
        yield folder / "state"
    shutil.rmtree(folder)


@pytest.mark.parametrize(("command", "code"), [(("doctor", "--all"), UNREACHABLE), (("store", "check"), NO)], ids=str)
def test_files_that_are_roots_are_named_with_the_mend(
    state: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], code: int
) -> None:
    main(list(command))  # what it imports may be root's as well
    capsys.readouterr()
    with another_user():
        assert main(list(command)) == code
    said = "".join(capsys.readouterr())
    assert f"sudo netplug {command[0]}" in said
    assert str(state / "netplug.db") in said
    assert "internal error" not in said
