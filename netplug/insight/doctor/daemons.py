"""Checks of daemons: another one in this network namespace."""

from collections.abc import Iterable

from netplug.errors.redaction import without_passwords, word_without_users
from netplug.insight.doctor.findings import Finding, failure, ok
from netplug.insight.doctor.subject import HostSubject, OneLook
from netplug.kernel.host.api import Program


async def others(host: HostSubject) -> Iterable[Finding]:
    """Find other daemons of netplug."""
    if not host.daemon:
        return [ok("none answers")]
    found = await serving(host.kernel)
    words = "is another daemon of this network namespace, and both undo each other's work"
    return [failure(f"process {it.pid} ({command(it)}) {words}", f"kill {it.pid}") for it in found]


async def serving(kernel: OneLook) -> list[Program]:
    """Return the daemons of netplug, but for the calling process."""
    return [it for it in await kernel.programs("netplug") if "serve" in it.arguments]


def command(program: Program) -> str:
    """Return the command line of a process for messages, without passwords."""
    return without_passwords(" ".join(map(word_without_users, program.arguments)))[:200]
