"""Ports, processes, sockets and sysctls of this host, and the facts that drivers get."""
