"""The overlay as a trace sees it: the tunnel between two hosts, and what the other host sees of a probe."""
