"""The C library's heap of this process.

glibc gives each thread a heap of its own ("arena", malloc(3)). What is freed in one is of no use to the others. Here
one thread holds the GIL at a time, so they seldom allocate at once, and heaps of their own would only take memory:
5 MB with 400 endpoints.
"""

from netplug.kernel import libc

_M_ARENA_MAX = -8
"""See mallopt(3)."""


def use_one_heap() -> None:
    """Have all threads use one heap. A C library without such heaps, such as musl, goes on as it is."""
    try:
        libc.call("mallopt", _M_ARENA_MAX, 1)
    except AttributeError:
        return
