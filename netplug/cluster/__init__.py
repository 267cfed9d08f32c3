"""Hosts that share networks through one etcd: membership, claims, views, barrier."""
