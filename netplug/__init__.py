"""netplug: container networking for every runtime."""

__version__ = "0.2.0"
