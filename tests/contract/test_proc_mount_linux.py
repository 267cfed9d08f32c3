"""Sysctls of sandboxes are opened by a mount of proc of our own."""

import errno
import os
from pathlib import Path

import pytest

from netplug.kernel.netlink.connection import IPV6_CONF
from netplug.kernel.sandbox import proc_mount
from netplug.kernel.sandbox.netns import temporary_netns
from netplug.kernel.sandbox.proc_mount import MOST, ProcMount
from netplug.kernel.threads import in_new_thread

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")
SETTING = "all/hop_limit"


def mark(mount: ProcMount, number: int) -> str:
    """Write a setting of a new namespace by the mount, and return what all others see of it there."""

    def work() -> str:
        with temporary_netns():
            conf = mount.open(IPV6_CONF)
            assert conf is not None
            try:
                file = os.open(SETTING, os.O_WRONLY, dir_fd=conf)
                os.write(file, str(number).encode())
                os.close(file)
            finally:
                os.close(conf)
            return Path("/proc", IPV6_CONF, SETTING).read_text().strip()

    return in_new_thread("mark", work)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def mounts_of_proc() -> list[str]:
    """Return those in this thread's tree; other tests mount namespaces meanwhile."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - proc " in line]


def test_each_namespace_has_its_own_settings() -> None:
    mounts, before, mount = mounts_of_proc(), descriptors(), ProcMount()
    numbers = range(10, 10 + 2 * MOST + 3)
    assert [mark(mount, number) for number in numbers] == [str(number) for number in numbers]
    assert mounts_of_proc() == mounts, "the mount is in no tree"
    assert descriptors() == before + 1, "former mounts are closed"
    mount.close()
    assert descriptors() == before


def test_mount_is_replaced_before_it_has_many_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = proc_mount._mount_proc
    monkeypatch.setattr(proc_mount, "_mount_proc", lambda: made.append(1) or real())
    mount = ProcMount()
    for number in range(1, MOST + 2):
        mark(mount, number)
    mount.close()
    assert len(made) == 2


def test_process_that_may_not_mount_uses_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refuse() -> int:
        asked.append(1)
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(proc_mount, "_mount_proc", refuse)
    mount = ProcMount()
    numbers = range(10, 10 + MOST + 1)
    assert [mark(mount, number) for number in numbers] == [str(number) for number in numbers]
    mount.close()
    assert len(asked) == 1


def test_what_is_not_there_is_none() -> None:
    mount = ProcMount()
    assert mount.open("sys/net/ipv7") is None
    mount.close()
