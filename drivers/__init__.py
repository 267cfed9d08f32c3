"""Drivers: pure functions that compute plans from networks and endpoints.

Import it as ``netplug.drivers``. The directory is at the top of the tree and linked into the package. An import as
``drivers`` is refused, since it would create a second copy of each class.
"""

if __name__ == "drivers":
    raise ImportError("import netplug.drivers, not drivers: two names would make two copies of every class")
