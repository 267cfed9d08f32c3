"""netplug: container networking that every runtime can plug into."""
