"""Netlink sockets, messages of rtnetlink and nf_tables, and change notifications."""
