"""What Docker's Engine API tells: events, garbage of crashes, names inside Docker's sandboxes."""
