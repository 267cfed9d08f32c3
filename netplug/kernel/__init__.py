"""The only place that touches the kernel: netlink, nf_tables, iptables, sysctls, namespaces, bound sockets."""
