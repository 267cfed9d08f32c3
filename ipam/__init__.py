"""Subnets out of address spaces, addresses out of subnets.

Import it as ``netplug.ipam``. The folder is at the top of the tree, and a symbolic link puts it into the package. Under
its top-level name Python would load a second copy of every class, so that import is refused.
"""

if __name__ == "ipam":
    raise ImportError("import netplug.ipam, not ipam: a second name would load a second copy of every class")
