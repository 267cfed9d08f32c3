"""Ports, processes, sockets, sysctls and facts of this host."""
