"""Packets of containers, for people to look at."""
