"""Why there is no answer, or none as wished: extended errors (RFC 8914) for those who speak EDNS."""

from . import wire

OTHER, STALE, NOT_READY, PROHIBITED, NO_REACHABLE, NETWORK_ERROR = 0, 3, 14, 18, 22, 23
"""RFC 8914 §4; the first says it in words alone."""

Why = tuple[int, str]
"""An extended error, and what it means here."""

NO_NAME: Why = (OTHER, "nobody in the asker's networks has this name")
NO_TYPE: Why = (OTHER, "the name has no records of this type")
SPECIAL: Why = (OTHER, "a name of special use is not asked of others")
ONE_LABEL: Why = (OTHER, "a name of one label is not asked of others")
STRANGER: Why = (PROHIBITED, "the asker has no address of this network")
INTERNAL: Why = (PROHIBITED, "internal networks ask nobody for names of others")
OLD_ANSWER: Why = (STALE, "no upstream answers, this was known before")
TOO_MANY: Why = (NOT_READY, "too many questions are under way")
UNREACHED: Why = (NO_REACHABLE, "no upstream could be reached, or all of them failed")
UNANSWERED: Why = (NETWORK_ERROR, "no upstream answered in time")
NO_UPSTREAM: Why = (NETWORK_ERROR, "no upstream is known (resolv.conf, dns_upstream)")

NONE = {wire.NXDOMAIN: NO_NAME, wire.NOERROR: NO_TYPE}
"""Of names of ours, by RCODE."""
