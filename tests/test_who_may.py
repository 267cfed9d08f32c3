"""Who may do what with the daemon's files and sockets: root, a group, everybody else. See docs/security.md."""

import fcntl
import grp
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from living import Living, a_namespace, living, settings_in
from structlog.testing import capture_logs

from netplug.cli import UNREACHABLE, CliError
from netplug.cli.client import Client
from netplug.daemon import socket_group
from netplug.daemon.folders import own_folder, writable_by_others
from netplug.daemon.lock import claim_socket, lock_file, release_socket
from netplug.daemon.namespace_lock import claim_namespace
from netplug.errors import NetplugError

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")
NOBODY = 65534
GROUP = 4711
"""Of nobody on any host: a group need not have a name."""
CONNECT = """
import os, socket, sys
user, groups, path = int(sys.argv[1]), [int(it) for it in sys.argv[2].split(",") if it], sys.argv[3]
os.setgroups(groups); os.setgid(user); os.setuid(user)
with socket.socket(socket.AF_UNIX) as sock:
    try:
        sock.connect(path)
    except PermissionError:
        print("refused")
    else:
        print("connected")
"""
LISTEN = """
import os, socket, sys
os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
with socket.socket(socket.AF_UNIX) as sock:
    sock.bind(sys.argv[2])
    sock.listen()
    print(1, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter, as /run; those of pytest are the user's own."""
    path = Path(tempfile.mkdtemp(prefix="netplug-who-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def connects(path: Path, *groups: int) -> str:
    """Have another user connect."""
    said = subprocess.run(
        [sys.executable, "-c", CONNECT, str(NOBODY), ",".join(map(str, groups)), str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    return said.stdout.strip()


@NEEDS_ROOT
def test_only_members_of_the_group_use_the_api(public: Path) -> None:
    with living(public, socket_group=str(GROUP)) as daemon:
        settings = daemon.settings
        for path, members in ((settings.api_socket, "connected"), (settings.plugin_socket, "refused")):
            assert connects(path, GROUP) == members
            assert connects(path) == "refused"
        assert connects(settings.cni_socket, GROUP) == "refused"
        status = settings.api_socket.stat()
        assert (status.st_gid, mode(settings.api_socket)) == (GROUP, 0o660)


@NEEDS_ROOT
def test_without_a_group_root_alone_uses_the_sockets(public: Path) -> None:
    with living(public) as daemon:
        for path in (daemon.settings.api_socket, daemon.settings.plugin_socket, daemon.settings.cni_socket):
            assert connects(path, GROUP) == "refused"
            assert mode(path) == 0o600


@NEEDS_ROOT
def test_group_that_is_no_more_set_is_said_while_systemd_keeps_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "netplug.sock"
    path.touch(mode=0o600)
    socket_group.let_group_in(path, GROUP)
    assert (path.stat().st_gid, mode(path)) == (GROUP, 0o660)
    with capture_logs() as said:
        socket_group.let_group_in(path, None)
    assert [(it["event"], it["mode"], it["group"]) for it in said] == [("socket.open", "0660", GROUP)]
    path.chmod(0o600)
    with capture_logs() as said:
        socket_group.let_group_in(path, None)
    assert said == []


def test_group_that_may_not_be_given_is_said_and_nobody_else_gets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "netplug.sock"
    path.touch(mode=0o600)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refused)
    with capture_logs() as said:
        socket_group.let_group_in(path, GROUP)
    assert [it["event"] for it in said] == ["socket.group_refused"]
    assert f"SupplementaryGroups={GROUP}" in said[0]["hint"]
    assert mode(path) == 0o600


def test_group_is_known_by_its_name_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    known = grp.getgrgid(os.getgid())
    assert settings_in(tmp_path, socket_group=known.gr_name).socket_gid == known.gr_gid
    assert settings_in(tmp_path).socket_gid is None
    with pytest.raises(NetplugError, match=r"setting socket_group .* is 'no-such-group': is no group of this host"):
        settings_in(tmp_path, socket_group="no-such-group")


def test_files_are_the_owners_alone_whatever_the_mask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with living(tmp_path / "deep" / "down") as daemon:
            daemon.client.post("networks", body={"name": "blue", "options": {"mode": "none"}})
            settings = daemon.settings
            found = {it: mode(it) for top in (settings.state_dir, settings.run_dir) for it in top.rglob("*")}
            folders = {it: mode(it) for it in (settings.state_dir, settings.run_dir, settings.plugin_dir)}
            above = mode(tmp_path / "deep")
    finally:
        os.umask(before)
    files = {path: rights for path, rights in found.items() if not path.is_dir()}
    assert {path.name for path in files} >= {"netplug.db", "lock", "turn", "netplug.sock", "cni.sock"}
    assert {path.name: oct(rights) for path, rights in files.items() if rights != 0o600} == {}
    assert [oct(it) for it in folders.values()] == ["0o700", "0o755", "0o755"]
    assert above == 0o755


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock of a folder, as anybody may who can list it (flock(2) needs no right to write)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def test_whoever_locks_the_folders_of_the_sockets_keeps_no_daemon_from_starting(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    for folder in (settings.run_dir, settings.plugin_dir):
        folder.mkdir(mode=0o755)
    with locked(settings.run_dir), locked(settings.plugin_dir):
        daemon = Living(settings).start()
        daemon.stop()
        assert daemon.error is None
    assert [it.name for it in settings.plugin_dir.iterdir()] == []


@NEEDS_ROOT
@pytest.mark.parametrize("which", ["state_dir", "run_dir", "plugin_dir"])
def test_folder_that_another_user_made_first_is_refused_by_name(public: Path, which: str) -> None:
    folder = getattr(settings_in(public), which)
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    daemon = Living(settings_in(public), namespace=a_namespace())
    daemon.launch()
    daemon.join()
    assert isinstance(daemon.error, NetplugError)
    assert daemon.error.message.startswith(f"folder {folder} is not safe: {folder} belongs to user {NOBODY}")
    assert list(folder.iterdir()) == []


def test_folders_that_others_may_write_to_are_refused(tmp_path: Path) -> None:
    own_folder(tmp_path / "own", 0o700)
    assert writable_by_others(tmp_path / "own") == ""
    (tmp_path / "own").chmod(0o757)
    assert "everybody may write to" in writable_by_others(tmp_path / "own")
    for claim in (
        lambda: lock_file(tmp_path / "own" / "lock"),
        lambda: claim_socket(tmp_path / "own" / "n.sock", 0o600),
    ):
        with pytest.raises(NetplugError, match="is not safe: everybody may write to"):
            claim()
    assert list((tmp_path / "own").iterdir()) == []


def test_world_writable_folder_is_safe_above_and_only_with_the_sticky_bit(tmp_path: Path) -> None:
    above, own = tmp_path / "tmp", tmp_path / "tmp" / "own"
    own_folder(own, 0o700)
    above.chmod(0o1777)
    assert writable_by_others(own) == ""
    assert writable_by_others(above) == f"everybody may write to {above}"
    above.chmod(0o777)
    assert writable_by_others(own) == f"everybody may write to {above}"


@NEEDS_ROOT
def test_links_of_other_users_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    own, other = tmp_path / "own", tmp_path / "other"
    own.symlink_to("real")
    other.symlink_to("real")
    os.chown(other, NOBODY, NOBODY, follow_symlinks=False)
    assert writable_by_others(own) == ""
    assert writable_by_others(other) == f"{other} belongs to user {NOBODY}"
    theirs = tmp_path / "theirs"
    theirs.write_text("kept")
    (tmp_path / "real" / "lock").symlink_to(theirs)
    with pytest.raises(NetplugError, match="cannot be opened"):
        lock_file(tmp_path / "real" / "lock")
    assert theirs.read_text() == "kept"


@NEEDS_ROOT
def test_locks_of_a_namespace_are_not_in_a_folder_of_others(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    with capture_logs() as said, claim_namespace(a_namespace(), tmp_path):
        pass
    assert [it["event"] for it in said] == ["namespace.unlocked"]


@NEEDS_ROOT
def test_command_takes_no_answer_from_another_users_process(public: Path) -> None:
    run = public / "run"
    run.mkdir(mode=0o777)
    run.chmod(0o777)
    command = [sys.executable, "-c", LISTEN, str(NOBODY), str(run / "netplug.sock")]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == "1\n"
        with pytest.raises(CliError, match=f"belongs to user {NOBODY}, so it is not the netplug daemon") as caught:
            Client(run).get("version")
        other.stdin.close()
    assert caught.value.code == UNREACHABLE


def test_dead_socket_of_a_predecessor_and_its_lock_are_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "run" / "n.sock"
    path.parent.mkdir()
    path.with_name(".n.sock.lock").touch(mode=0o600)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    claimed = claim_socket(path, 0o600)
    assert [it.name for it in path.parent.iterdir()] == ["n.sock"]
    release_socket(claimed)
    assert list(path.parent.iterdir()) == []
