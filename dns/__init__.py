"""The embedded DNS server: names of containers, answers in wire format, forwarding, sockets on the running event loop.

Import it as ``netplug.dns``. The folder is at the top of the tree, and a symbolic link puts it into the package. Under
its top-level name Python would load a second copy of every class, so that import is refused.
"""

if __name__ == "dns":
    raise ImportError("import netplug.dns, not dns: a second name would load a second copy of every class")
