"""What a network is made of: pure functions from networks and endpoints to plans.

Import it as ``netplug.drivers``. The folder lies at the top of the tree and is linked into the package; imported
under its bare name there would be two copies of every class, so that is refused.
"""

if __name__ == "drivers":
    raise ImportError("import netplug.drivers, not drivers: two names would make two copies of every class")
