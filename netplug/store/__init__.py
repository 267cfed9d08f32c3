"""What is remembered: keys, JSON records and revisions; SQLite by default, etcd for what hosts share."""
