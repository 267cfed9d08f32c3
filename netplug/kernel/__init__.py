"""The only place that touches the kernel: netlink, iptables, ipset, sysctls, namespaces, bound sockets."""
