"""What every daemon answers to those of other hosts: its clock, and what it knows of its host."""

import os
import time

from netplug import __version__
from netplug.cluster.membership import Membership
from netplug.cluster.questions import Questions
from netplug.drivers.codec import JsonObject, encode
from netplug.kernel.api import Kernel

CLOCK = "clock"
FACTS = "facts"


class Answers:
    """Answers of this host. Made once, it registers them."""

    def __init__(self, questions: Questions, kernel: Kernel, membership: Membership, name: str) -> None:
        self._kernel = kernel
        self._membership = membership
        self._name = name
        questions.answer(CLOCK, self._clock)
        questions.answer(FACTS, self._facts)

    async def _clock(self, _: JsonObject) -> JsonObject:
        """Return the wall time, in seconds since 1970.

        Its offset from the clock of the host that asks is, within half the round trip, this minus the middle of the
        times at which that host asked and had the answer.
        """
        return {"time": time.time()}

    async def _facts(self, _: JsonObject) -> JsonObject:
        """Return version, name, kernel, VTEP and `HostFacts`."""
        facts = encode(await self._kernel.facts())
        return {
            "name": self._name,
            "version": __version__,
            "kernel": os.uname().release,
            "vtep": str(self._membership.vtep),
            "notes": list(self._membership.notes),
            "facts": facts,
        }
