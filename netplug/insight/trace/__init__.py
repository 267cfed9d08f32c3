"""`netplug trace`: the path of a packet as records and plans say it, proved by a probe, and why it breaks."""
