"""All threads of the daemon use one heap of the C library, and large blocks are not in it."""

import re
import resource
import subprocess
import sys

import pytest

THREAD = """
kept = []
thread = threading.Thread(target=lambda: kept.append(bytes(50_000)))
thread.start()
thread.join()
"""
LARGE = """
bytearray(5_000_000)
kept = [bytearray(1_000_000) for _ in range(3)]
"""
SCRIPT = """
import ctypes, threading
from netplug.kernel.host.heap import use_one_heap
{first}
{work}
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def heaps(work: str, *, one: bool) -> str:
    """Return malloc_info(3) of a process that does some work."""
    if sys.platform != "linux" or not hasattr(__import__("ctypes").CDLL(None), "malloc_info"):
        pytest.skip("the C library has no malloc_info(3)")
    script = SCRIPT.format(first="use_one_heap()" if one else "", work=work)
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=50).stdout


@pytest.mark.parametrize("one", [True, False])
def test_threads_share_a_heap(one: bool) -> None:
    assert (heaps(THREAD, one=one).count("<heap nr=") == 1) is one


@pytest.mark.parametrize("one", [True, False])
def test_large_blocks_stay_outside_though_larger_ones_were_freed(one: bool) -> None:
    """Python's own arenas have mappings that malloc knows nothing of."""
    found = re.findall(r'<total type="mmap" count="(\d+)" size="(\d+)"/>', heaps(LARGE, one=one))
    assert (int(found[-1][1]) >= 3_000_000) is one


@pytest.mark.parametrize("back", [True, False])
def test_what_is_free_between_blocks_is_given_back(back: bool) -> None:
    pages = 'int(open("/proc/self/statm").read().split()[1])'
    work = "\n".join(
        (
            "from netplug.kernel.host.heap import give_back",
            "blocks = [bytes(3000) for _ in range(10_000)]",
            f"before = {pages}",
            "del blocks[:-1]",
            "give_back()" if back else "",
            f"print('<given>', before - {pages})",
        )
    )
    given = int(heaps(work, one=True).partition("<given>")[2].split()[0]) * resource.getpagesize()
    assert (given > 15_000_000) is back
