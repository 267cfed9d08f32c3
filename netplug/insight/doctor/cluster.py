"""Checks of the other hosts of the cluster. They are asked by the shared store."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from netplug import __version__
from netplug.cluster.answers import CLOCK, FACTS
from netplug.cluster.questions import Reason, Unanswered
from netplug.insight.doctor.findings import Finding, note, ok, unchecked, warning
from netplug.store.api import Unreachable

if TYPE_CHECKING:
    from netplug.cluster.cluster import Cluster
    from netplug.insight.insight import Subject

_ANSWER_S = 1.0
_APART_S = 2.0
_FAR_APART_S = 60.0
_ALONE = "this host shares no store"


async def hosts(subject: "Subject") -> Iterable[Finding]:
    """Find hosts that are dead, or report faults."""
    cluster = subject.cluster
    if cluster is None:
        return [ok(_ALONE)]
    try:
        found = await cluster.hosts()
    except Unreachable as exc:
        return [unchecked(str(exc), "see check store.shared")]
    findings = []
    for it in (it for it in found if not it.me):
        if not it.alive:
            words = f"host {it.name or it.id[:12]} is not alive: it gets no changes; it has {it.endpoints} endpoints"
            findings.append(
                warning(words, f"start netplug there; if it never comes back: netplug host forget {it.name}")
            )
        findings += [warning(f"host {it.name}: {text}", "netplug doctor, on that host") for text in it.notes]
    return findings or [ok(f"{len(found)} hosts are alive, and report no faults")]


def mend(answer: Unanswered) -> str:
    """Return where to look; the answer's hint leads to the doctor, where this is shown."""
    return "see check store.shared" if answer.reason is Reason.STORE else answer.hint or ""


async def versions(subject: "Subject") -> Iterable[Finding]:
    """Find hosts with another version."""
    cluster = subject.cluster
    if cluster is None:
        return [ok(_ALONE)]
    found = []
    for name, answer in (await _asked(cluster, FACTS)).items():
        if isinstance(answer, Unanswered):
            if answer.reason is Reason.UNKNOWN_KIND:
                found.append(warning(answer.message, "update netplug there, one host after the other"))
            elif answer.reason is not Reason.NOT_ALIVE:
                found.append(unchecked(answer.message, mend(answer)))
        elif (version := str(answer.get("version", ""))) != __version__:
            words = f"host {name} runs netplug {version}, this host {__version__}"
            found.append(warning(words, "bring both to one version: docs/running.md, Upgrade and rollback"))
    return found or [ok(f"all hosts run netplug {__version__}")]


async def clocks(subject: "Subject") -> Iterable[Finding]:
    """Find hosts with another time."""
    cluster = subject.cluster
    if cluster is None:
        return [ok(_ALONE)]
    found = []
    for name, answer in (await _asked(cluster, CLOCK)).items():
        if isinstance(answer, Unanswered):
            if answer.reason not in {Reason.NOT_ALIVE, Reason.UNKNOWN_KIND}:
                found.append(unchecked(answer.message, mend(answer)))
            continue
        apart = abs(float(answer["offset"]))
        if apart - float(answer["error"]) <= _APART_S:
            continue
        ahead = "ahead of" if float(answer["offset"]) > 0 else "behind"
        words = (
            f"the clock of host {name} is {apart:.0f} s {ahead} this host's: their logs and events cannot be compared"
        )
        advice = "timedatectl set-ntp true, on both hosts"
        if apart > _FAR_APART_S:
            found.append(warning(f"{words}, and certificates may count as ended", advice))
        else:
            found.append(note(words, advice))
    return found or [ok("the clocks of all hosts agree")]


async def _asked(cluster: "Cluster", kind: str) -> Mapping[str, Any]:
    """Return the answer of each other live host, by name; or why there is none.

    Those to `CLOCK` have "offset", how far the other clock is ahead, and "error", half the round trip; in seconds.
    """
    others = {ident: host.name for ident, host in cluster.view.hosts().items() if ident != cluster.me}
    live = {ident: name for ident, name in others.items() if cluster.view.alive(ident)}

    async def ask(ident: str) -> Any:
        began = time.time()
        try:
            answer = await cluster.questions.ask(ident, kind, {}, _ANSWER_S)
        except Unanswered as exc:
            return exc
        ended = time.time()
        if kind == CLOCK:
            said = answer.get("time")
            there = float(said) if isinstance(said, int | float) else began
            return {"offset": there - (began + ended) / 2, "error": (ended - began) / 2}
        return answer

    answers = await asyncio.gather(*map(ask, live))
    return dict(zip(live.values(), answers, strict=True))
