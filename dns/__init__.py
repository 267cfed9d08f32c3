"""The embedded name server: names of networks, answers on the wire, forwarding, sockets on the running loop.

Import it as ``netplug.dns``. The folder lies at the top of the tree and is linked into the package; imported
under its bare name there would be two copies of every class, so that is refused.
"""

if __name__ == "dns":
    raise ImportError("import netplug.dns, not dns: two names would make two copies of every class")
