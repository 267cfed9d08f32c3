"""What `netplug install-service` writes and refuses, and what `netplug uninstall` takes back."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from netplug.config import load
from netplug.daemon.host_files import HostFile, Note, remove, wanted
from netplug.daemon.service_installation import ServiceInstallation
from netplug.errors import NetplugError
from netplug.insight.doctor import without_daemon
from netplug.insight.doctor.without_daemon import has_service
from netplug.kernel.host.services import Services

COMMAND = Path("/opt/net plug/bin/netplug")
UNIT = "etc/systemd/system/netplug.service"


class Machine:
    """A host below a folder, without systemd, and what was said."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = load()
        self.note = root / "var/lib/netplug/service.json"
        self.said: list[str] = []

    def installation(self, *, dry_run: bool = False, files: Sequence[HostFile] = ()) -> ServiceInstallation:
        made = tuple(files) or tuple(wanted(self.root, COMMAND, lambda: b"executable", self.settings, units=True))
        services = Services(self.root)
        return ServiceInstallation(made, self.note, services, self.said.append, self.root, dry_run=dry_run)

    def install(self) -> bool:
        run = self.installation()
        run.refuse(0)
        return run.write()

    def files(self) -> dict[str, str]:
        found = (it for it in sorted(self.root.rglob("*")) if it.is_file())
        return {str(it.relative_to(self.root)): it.read_text() for it in found}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    return Machine(tmp_path)


def test_units_start_the_command_of_this_installation(machine: Machine) -> None:
    assert machine.install()
    found = machine.files()
    assert 'ExecStart="/opt/net plug/bin/netplug" serve' in found[UNIT]
    assert set(found) >= {
        "etc/systemd/system/netplug.socket",
        "etc/systemd/network/05-netplug.network",
        "opt/cni/bin/pynet",
    }
    modes = {"opt/cni/bin/pynet": 0o755, UNIT: 0o644, "etc/netplug/netplug.toml": 0o640}
    assert {name: (machine.root / name).stat().st_mode & 0o777 for name in modes} == modes
    assert not any("NetworkManager" in name or "netavark" in name for name in found)


def test_sockets_are_those_of_the_settings(machine: Machine) -> None:
    machine.settings = load(run_dir=Path("/run/mine"), plugin_dir=Path("/run/plugins"), driver_name="net")
    machine.install()
    found = machine.files()
    lines = [line for line in found["etc/systemd/system/netplug.socket"].splitlines() if "ListenStream" in line]
    names = ("/run/plugins/net.sock", "/run/mine/netplug.sock", "/run/mine/cni.sock")
    assert lines == [f"ListenStream={name}" for name in names]
    assert "opt/cni/bin/net" in found


def test_what_is_there_decides_what_is_written(machine: Machine) -> None:
    for folder in ("usr/lib/cni", "etc/NetworkManager", "no-programs"):
        (machine.root / folder).mkdir(parents=True)
    podman = machine.root / "no-programs/podman"
    podman.write_text("#!/bin/sh\n")
    podman.chmod(0o755)
    machine.install()
    found = set(machine.files())
    assert found >= {"usr/lib/cni/pynet", "etc/NetworkManager/conf.d/90-netplug.conf", "usr/local/lib/netavark/pynet"}
    assert "opt/cni/bin/pynet" not in found


def test_second_run_writes_nothing_and_a_new_version_writes_what_differs(machine: Machine) -> None:
    machine.install()
    before = machine.files()
    machine.said.clear()
    assert not machine.install()
    assert machine.files() == before
    assert all(line.startswith(("unchanged ", "keep ")) for line in machine.said)
    files = [HostFile(machine.root / UNIT, b"of another version")]
    run = machine.installation(files=files)
    run.refuse(0)
    assert run.write()
    assert machine.files()[UNIT] == "of another version"


def test_dry_run_writes_nothing(machine: Machine) -> None:
    run = machine.installation(dry_run=True)
    run.refuse(0)
    assert run.write()
    assert machine.files() == {}
    assert f"write {machine.root / UNIT}" in machine.said


@pytest.mark.parametrize("folder", ["usr/lib/systemd/system", "lib/systemd/system"])
def test_service_of_a_package_is_refused(machine: Machine, folder: str) -> None:
    assert not has_service(machine.root)
    (machine.root / folder).mkdir(parents=True)
    (machine.root / folder / "netplug.service").touch()
    assert has_service(machine.root)
    with pytest.raises(NetplugError, match="a package of this system brings the service already"):
        machine.install()


def test_files_of_others_and_changed_ones_are_refused_and_stay(machine: Machine) -> None:
    path = machine.root / UNIT
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(NetplugError, match="exists, and netplug did not write it"):
        machine.install()
    path.unlink()
    machine.install()
    path.write_text(path.read_text() + "# mine\n")
    with pytest.raises(NetplugError, match="was changed since netplug wrote it"):
        machine.install()
    removed, kept = remove(machine.note)
    assert kept == [path]
    assert path not in removed
    assert path.exists()


def test_daemon_of_no_service_is_refused(machine: Machine) -> None:
    with pytest.raises(NetplugError, match=r"a daemon runs that is no service \(process 4711\)"):
        machine.installation().refuse(4711)


def test_settings_are_written_once_and_are_the_users_then(machine: Machine) -> None:
    file = HostFile(machine.root / "etc/netplug/netplug.toml", b"# example\n", kept=True)
    machine.installation(files=[file]).write()
    file.path.write_text("store = 'sqlite'\n")
    machine.installation(files=[file]).refuse(0)
    assert not machine.installation(files=[file]).write()
    assert remove(machine.note) == ([], [file.path])
    assert file.path.read_text() == "store = 'sqlite'\n"


def test_removal_leaves_nothing_and_can_be_repeated(machine: Machine) -> None:
    (machine.root / "etc/NetworkManager").mkdir(parents=True)
    before = sorted(machine.root.rglob("*"))
    machine.install()
    removed, kept = remove(machine.note)
    assert machine.root / UNIT in removed
    assert kept == []
    machine.note.parent.rmdir()
    for folder in ("var/lib", "var"):  # of the state directory, which is made for its owner
        (machine.root / folder).rmdir()
    assert sorted(machine.root.rglob("*")) == before
    assert remove(machine.note) == ([], [])


def test_failure_in_the_middle_is_noted_so_that_removal_finds_all(machine: Machine) -> None:
    in_the_way = machine.root / "opt/cni/bin/pynet"
    in_the_way.mkdir(parents=True)
    with pytest.raises(NetplugError, match="cannot be written"):
        machine.install()
    removed, _ = remove(machine.note)
    assert machine.root / UNIT in removed
    assert machine.files() == {}


def test_damaged_note_is_an_error_with_its_path(machine: Machine) -> None:
    machine.note.parent.mkdir(parents=True)
    machine.note.write_text("{")
    with pytest.raises(NetplugError, match=str(machine.note)):
        Note.read(machine.note)


@pytest.mark.parametrize(("there", "mend"), [(False, "netplug install-service"), (True, "systemctl start netplug")])
def test_doctor_names_what_starts_the_daemon_here(there: bool, mend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without_daemon, "has_service", lambda: there)
    found = without_daemon._daemon(without_daemon.Absence("no daemon answers"), (), "systemctl restart netplug")
    assert found.mend.startswith(mend)
