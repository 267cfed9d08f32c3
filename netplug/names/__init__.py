"""The name server: records as DNS zones, access control, listeners."""
