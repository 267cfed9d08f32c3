"""Reasons for negative, failed and stale answers: extended errors (RFC 8914) for clients with EDNS."""

from . import wire

OTHER, STALE, NOT_READY, BLOCKED, PROHIBITED, NO_REACHABLE, NETWORK_ERROR = 0, 3, 14, 15, 18, 22, 23
"""INFO-CODEs of RFC 8914 §4; `OTHER` is explained by its text only."""

Why = tuple[int, str]
"""INFO-CODE and EXTRA-TEXT of an extended error."""

NO_NAME: Why = (OTHER, "no container in the client's networks has this name")
NO_TYPE: Why = (OTHER, "the name has no records of this type")
SPECIAL: Why = (OTHER, "special-use domain names are not forwarded")
ONE_LABEL: Why = (OTHER, "names of one label are not forwarded")
UNKNOWN_CLIENT: Why = (PROHIBITED, "the client has no address in this network")
INTERNAL: Why = (PROHIBITED, "internal networks do not resolve external names")
STALE_ANSWER: Why = (STALE, "no upstream answers; this answer has expired")
TOO_MANY: Why = (NOT_READY, "too many queries are pending")
REBINDING: Why = (BLOCKED, "an upstream answers with a private address (dns_rebinding)")
UNREACHABLE: Why = (NO_REACHABLE, "all upstreams are unreachable, or failed")
TIMED_OUT: Why = (NETWORK_ERROR, "no upstream answered in time")
NO_UPSTREAM: Why = (NETWORK_ERROR, "no upstream is configured (resolv.conf, dns_upstream)")

NONE = {wire.NXDOMAIN: NO_NAME, wire.NOERROR: NO_TYPE}
"""For negative answers about local names, by RCODE."""
