"""Processes of a lab, as proc(5) tells of them."""

import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netplug.lab.node import state

SYS_EXIT = {"x86_64": 60, "aarch64": 93, "riscv64": 93}.get(platform.machine())
FIRST_THREAD_ENDS = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).syscall(int(sys.argv[1]), 0)
"""
DEADLINE_S = 10


def becomes(process: Path, wanted: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while state(process) != wanted:
        assert time.monotonic() < deadline, state(process)


@pytest.mark.skipif(SYS_EXIT is None, reason="exit(2) of a thread alone is not known on this machine")
def test_process_lives_for_as_long_as_any_of_its_threads() -> None:
    """Such a one holds its ports; who starts the next one on them would fail."""
    command = [sys.executable, "-c", FIRST_THREAD_ENDS, str(SYS_EXIT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as it:
        process = Path(f"/proc/{it.pid}")
        becomes(process, "Z")
        assert it.poll() is None
        assert it.stdin
        it.stdin.close()
        becomes(process, "")
    assert state(process) == ""
