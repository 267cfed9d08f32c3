"""Links, their addresses, routes, neighbours, FDB entries and rate limits."""
