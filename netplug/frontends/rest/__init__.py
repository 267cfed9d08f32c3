"""The REST API that the command `netplug` speaks with."""
