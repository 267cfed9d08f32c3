"""Subnets out of address spaces, addresses out of subnets.

Import it as ``netplug.ipam``. The folder lies at the top of the tree and is linked into the package; imported
under its bare name there would be two copies of every class, so that is refused.
"""

if __name__ == "ipam":
    raise ImportError("import netplug.ipam, not ipam: two names would make two copies of every class")
