"""Completion of commands, flags and values in bash, zsh and fish.

The scripts know commands and flags, so most of what is completed starts no process. Names of networks, endpoints and
hosts come from the daemon, by `netplug __complete KIND` (`values.py`): Tab waits for it, so it imports next to nothing.
"""
