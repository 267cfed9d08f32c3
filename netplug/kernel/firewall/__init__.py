"""nf_tables, iptables, ipset, conntrack."""
