"""Network namespaces of containers, and the DNS sockets that serve them."""
