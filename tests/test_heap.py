"""All threads of the daemon use one heap of the C library."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, threading
from netplug.kernel.host.heap import use_one_heap
{first}
kept = []
thread = threading.Thread(target=lambda: kept.append(bytes(50_000)))
thread.start()
thread.join()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.parametrize("one", [True, False])
def test_threads_share_a_heap(one: bool) -> None:
    if sys.platform != "linux" or not hasattr(__import__("ctypes").CDLL(None), "malloc_info"):
        pytest.skip("the C library has no malloc_info(3)")
    script = SCRIPT.format(first="use_one_heap()" if one else "")
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=50).stdout
    assert (said.count("<heap nr=") == 1) is one
