"""Network namespaces of containers, and DNS sockets for them."""
