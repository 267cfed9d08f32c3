"""Makes checks side by side, each with a deadline: one that fails or hangs keeps no other from its answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import structlog

from netplug.insight.doctor.findings import Check, Finding, ok, unchecked

log = structlog.get_logger(__name__)

_T = TypeVar("_T")


async def examine(checks: Sequence[Check[_T]], subject: _T) -> list[Finding]:
    """Make all checks of a subject at once, and return what they find, in their order; at least one for each."""
    parts = await asyncio.gather(*(_made(check, subject) for check in checks))
    return [finding for part in parts for finding in part]


async def _made(check: Check[_T], subject: _T) -> list[Finding]:
    try:
        async with asyncio.timeout(check.deadline_s):
            found = list(await check.look(subject)) or [ok(check.well)]
    except TimeoutError:
        found = [unchecked(f"no answer within {check.deadline_s:g} s")]
    except Exception as exc:  # noqa: BLE001 - whatever is wrong with one check, the others go on
        log.warning("doctor.failed", check=check.ident, error=repr(exc))
        found = [unchecked(f"the check failed: {' '.join(str(exc).split()) or type(exc).__name__}")]
    return [replace(it, check=check.ident) for it in found]
