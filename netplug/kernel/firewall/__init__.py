"""nf_tables, the gate in iptables, firewalld, connection tracking."""
