"""Persistent state: keys, JSON records, revisions. SQLite has this host's own records, etcd those that hosts share."""
