"""The C library's heap of this process.

glibc gives each thread a heap of its own ("arena", malloc(3)). What is freed in one is of no use to the others. Here
one thread holds the GIL at a time, so they seldom allocate at once, and heaps of their own would only take memory:
5 MB with 400 endpoints.

What is freed in the middle of the heap stays with the process, unless it has a mapping of its own. So large blocks have
one each: tables of dictionaries, which are copied whenever they grow, and dumps of the kernel. By default glibc raises
the size from which it does so to the largest block that was ever freed, up to 32 MB: a table that grew once would have
all later ones leave holes in the heap.
"""

from contextlib import suppress

from netplug.kernel import libc

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""See mallopt(3)."""
_LARGE = 128 * 1024
"""Bytes, as glibc begins with. Setting it keeps glibc from raising it."""


def give_back() -> None:
    """Return to the kernel what is free in the heap, page by page (malloc_trim(3)). Takes half a millisecond.

    Else glibc does so at the heap's end only, and one block that is in use there keeps all before it.
    """
    with suppress(AttributeError):  # musl does it by itself
        libc.call("malloc_trim", 0)


def use_one_heap() -> None:
    """Have all threads use one heap, without large blocks in it.

    A C library without such heaps, such as musl, goes on as it is.
    """
    try:
        libc.call("mallopt", _M_ARENA_MAX, 1)
        libc.call("mallopt", _M_MMAP_THRESHOLD, _LARGE)
    except AttributeError:
        return
