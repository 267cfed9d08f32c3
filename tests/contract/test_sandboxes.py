"""Which namespace a reference means, and whether anybody lives in it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from netplug.errors import NetplugError
from netplug.kernel.sandbox import netns
from netplug.kernel.sandbox.identity import find, has_processes

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


@pytest.fixture
def name() -> Iterator[str]:
    name = f"np-test-{uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def refusal(ref: str) -> NetplugError:
    with pytest.raises(NetplugError) as caught:
        find(ref)
    return caught.value


@root
def test_name_and_path_mean_the_same(name: str, tmp_path: Path) -> None:
    path = f"/run/netns/{name}"
    status = Path(path).stat()
    assert find(name) == find(path) == (path, find(path)[1])
    assert find(name)[1].startswith(f"{status.st_dev}:{status.st_ino}:")
    assert find(f"/run/../run/netns/{name}") == find(name)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert find(str(link)) == (str(link), find(name)[1])


@root
def test_two_namespaces_are_two(name: str) -> None:
    other = f"{name}-b"
    subprocess.run(["ip", "netns", "add", other], check=True)
    try:
        assert find(name)[1] != find(other)[1]
    finally:
        subprocess.run(["ip", "netns", "del", other], check=True)


@root
def test_no_identity_comes_twice(name: str) -> None:
    """Inodes do: that of a namespace that goes is the next one's."""
    seen = set()
    for _ in range(5):
        seen.add(find(name)[1])
        subprocess.run(["ip", "netns", "del", name], check=True)
        subprocess.run(["ip", "netns", "add", name], check=True)
    assert len(seen) == 5


@root
def test_older_kernels_tell_by_the_cookie(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = find(name)[1]
    monkeypatch.setattr(netns, "_NS_GET_ID", 0x8008B7FF)  # which no kernel knows
    assert find(name)[1] == newest
    with netns.Sandboxes() as sandboxes:
        sandboxes.get(name, newest)
    monkeypatch.setattr(netns, "_SO_NETNS_COOKIE", 9999)
    assert find(name)[1] == newest.rpartition(":")[0] + ":"


def test_what_is_not_there_is_not_found() -> None:
    error = refusal("np-test-nobody")
    assert error.kind == "not_found"
    assert "'np-test-nobody'" in error.message
    assert refusal("/nowhere/at/all").kind == "not_found"


def test_regular_file_and_other_namespaces_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (str(file), str(tmp_path), "/proc/self/ns/mnt"):
        error = refusal(path)
        assert (error.kind, "is not a network namespace" in error.message) == ("invalid", True)


@pytest.mark.parametrize("path", ["/proc/self/ns/net", "/proc/thread-self/ns/net"])
def test_the_hosts_own_is_refused(path: str) -> None:
    error = refusal(path)
    assert error.kind == "invalid"
    assert "the host's own" in error.message


def test_own_namespace_is_inhabited_and_a_missing_one_is_not(tmp_path: Path) -> None:
    assert has_processes("/proc/self/ns/net")
    assert not has_processes(str(tmp_path / "nobody"))


@root
def test_namespace_is_inhabited_while_a_process_lives_in_it(name: str) -> None:
    path = f"/run/netns/{name}"
    assert not has_processes(path)
    command = ["ip", "netns", "exec", name, "sh", "-c", "echo here; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "here\n"
        assert has_processes(path)
        assert has_processes("/nowhere", find(path)[1])
        assert not has_processes(path, find(path)[1] + "0")
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not buried: a zombie
        assert Path(f"/proc/{process.pid}").exists()
        assert not has_processes(path)
    assert not has_processes(path)
