"""Probes: packets that a process of its own sends and observes, for traces and captures."""
