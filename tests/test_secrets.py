"""No password shows in logs, errors, lock files or the list of processes."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from netplug.cli.app import app
from netplug.daemon.lock import Held, command_of, lock_file
from netplug.errors.redaction import without_passwords

URL = "etcd://np:s3cr3t@db:2379,db2:2379"


@pytest.mark.parametrize(
    "text",
    [
        f"netplug serve --store {URL} --run-dir /x",
        f"--store='{URL}'",
        "etcd://np:s3cr3t@s3cr3t@db:2379",
        "etcd://np:a/s3cr3t@db:2379",
        "etcd://np:a?s3cr3t#x@db:2379",
        "NETPLUG_ETCD_PASSWORD=s3cr3t",
        'etcd_password = "s3cr3t"',
        'etcd_password = "a s3cr3t, \\" s3cr3t" db:2379',
        "NETPLUG_ETCD_PASSWORD=a,s3cr3t;s3cr3t",
        '{"etcd_password":"a s3cr3t"}',
    ],
)
def test_passwords_are_left_out(text: str) -> None:
    assert "s3cr3t" not in without_passwords(text)
    assert "db:2379" in without_passwords(text) or "db:2379" not in text


def test_holder_of_a_lock_is_named_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["netplug", "serve", "--store", URL])
    path = tmp_path / "lock"
    with lock_file(path):
        assert "s3cr3t" not in path.read_text()
        path.write_text(f"process 1 (netplug serve --store {URL})")  # as an older version wrote it
        with pytest.raises(Held, match=r"etcd://\*\*\*@db:2379") as caught:
            lock_file(path)
    assert "s3cr3t" not in str(caught.value)


HARD = "etcd://np:a/s3cr3t? s3cr3t@db:2379"
"""Users do not encode what a URL may not have."""


def test_holder_of_a_lock_is_named_without_a_password_of_any_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["netplug", "serve", f"--store={HARD}"])
    with lock_file(tmp_path / "lock"):
        assert "s3cr3t" not in (tmp_path / "lock").read_text()
    code = "print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code, HARD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout
    try:
        other.stdout.readline()
        assert "db:2379" in command_of(other.pid)
        assert "s3cr3t" not in command_of(other.pid)
    finally:
        other.communicate(b"\n")


@pytest.mark.parametrize("url", [URL, HARD])
def test_list_of_processes_has_it_no_more(url: str) -> None:
    code = (
        "import sys; from netplug.errors.redaction import hide_arguments; hide_arguments();"
        "print(open('/proc/self/cmdline').read().replace(chr(0), ' '), flush=True); print(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, url, "--etcd-ca", "x"], capture_output=True, text=True, check=True
    )
    seen, own = done.stdout.splitlines()
    hidden, _, hosts = url.removeprefix("etcd://").rpartition("@")
    assert f"etcd://{'*' * len(hidden)}@{hosts} --etcd-ca x" in seen
    assert own == url


@pytest.mark.parametrize(
    "url",
    [
        "etcd://np:s3cr3t@db",
        "etcd://np:s3cr3t@db:x",
        "etcd://s3cr3t@db:1",
        "np:s3cr3t@db:1",
        "etcd://np:a/s3cr3t@db",
        "etcd://np:a s3cr3t@db:x",
        "etcd:/np:s3cr3t@db:1",
        "//np:s3cr3t/@db:1",
    ],
)
def test_setting_that_is_wrong_is_shown_without(url: str) -> None:
    done = CliRunner().invoke(app, ["serve", "--store", url])
    assert done.exit_code
    assert "s3cr3t" not in done.output + str(done.exception)
