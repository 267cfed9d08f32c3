"""netplug: container networking for every runtime."""
