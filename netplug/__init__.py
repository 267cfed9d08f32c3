"""netplug: container networking for every runtime."""

__version__ = "0.1.0"
