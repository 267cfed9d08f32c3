"""How the host itself resolves names, and how it learns who answers for a domain.

systemd-resolved is told by D-Bus, resolvconf(8) by its command, and resolv.conf(5) has a line of ours where no program
writes it. A program that rewrites the file takes that line away: `lead` puts it back.
"""

import asyncio
import shutil
from pathlib import Path

from netplug.errors import NetplugError
from netplug.kernel.host import resolv_conf, resolved
from netplug.kernel.host.api import Authority, Way

_ROOT = Path("/")
_CONF, _NSSWITCH = "etc/resolv.conf", "etc/nsswitch.conf"
_STUBS = frozenset({"127.0.0.53", "127.0.0.54"})
"""Addresses of systemd-resolved (systemd-resolved.service(8))."""
_RECORD = "lo.netplug"
"""The name of our record in resolvconf, which puts those of `lo` first (interface-order(5))."""
_PROGRAM_S = 10.0


class HostResolution:
    """The resolver of this host; see `Resolution`. `root`: where its files are."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._conf = root / _CONF

    async def way(self) -> Way:
        """Return how this host is told who answers for a domain; see `Resolution`."""
        text = await asyncio.to_thread(self._read, _CONF)
        servers = resolv_conf.servers(text)
        stub = not _STUBS.isdisjoint(servers)
        if (stub or self._asks_resolved()) and await resolved.answers():
            return Way.RESOLVED
        if stub:
            words = f"{self._conf} names systemd-resolved, which is not on the message bus"
            raise NetplugError("unavailable", words, hint="systemctl start systemd-resolved")
        if self._is_of_resolvconf(text):
            return Way.RESOLVCONF
        if not servers:
            words = f"{self._conf} names no resolver, so nothing says how this host resolves names"
            raise NetplugError("unavailable", words, hint="add a line 'nameserver ADDRESS'")
        written = self._conf.is_symlink() or resolv_conf.written_by(text)
        return Way.OTHER if written or servers[0].startswith("127.") or servers[0] == "::1" else Way.FILE

    async def lead(self, way: Way, authority: Authority) -> bool:
        """Tell the host who answers, and return whether it did not know; see `Resolution`."""
        match way:
            case Way.RESOLVED:
                return await resolved.lead(authority)
            case Way.RESOLVCONF:
                if str(authority.address) in resolv_conf.servers(await asyncio.to_thread(self._read, _CONF)):
                    return False
                await _resolvconf(f"nameserver {authority.address}\n", "-a", _RECORD)
                return True
            case Way.FILE:
                return await asyncio.to_thread(resolv_conf.add, self._conf, authority.address)
            case Way.OTHER:
                return False

    async def forget(self, way: Way, authority: Authority) -> None:
        """Take back what `lead` told; see `Resolution`."""
        match way:
            case Way.RESOLVED:
                await resolved.forget(authority)
            case Way.RESOLVCONF:
                if shutil.which("resolvconf"):
                    await _resolvconf("", "-d", _RECORD)
            case Way.FILE:
                await asyncio.to_thread(resolv_conf.remove, self._conf)
            case Way.OTHER:
                pass

    async def changed(self) -> None:
        """Wait until systemd-resolved begins anew; for ever where there is no message bus."""
        await resolved.begins_anew()

    def _read(self, name: str) -> str:
        try:
            return (self._root / name).read_text(errors="replace")
        except OSError:
            return ""

    def _asks_resolved(self) -> bool:
        """Return whether libc asks systemd-resolved before resolv.conf (nss-resolve(8))."""
        lines = (line.partition("#")[0].split() for line in self._read(_NSSWITCH).splitlines())
        return any(line[:1] == ["hosts:"] and "resolve" in line for line in lines)

    def _is_of_resolvconf(self, text: str) -> bool:
        """Return whether resolvconf writes resolv.conf. systemd-resolved brings a command of that name too."""
        program = shutil.which("resolvconf")
        if not program or Path(program).resolve().name == "resolvectl":
            return False
        return "resolvconf" in self._conf.resolve().parts or "by resolvconf" in text


async def _resolvconf(text: str, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "resolvconf",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_PROGRAM_S):
            _, said = await process.communicate(text.encode())
    except BaseException:
        if process.returncode is None:
            process.kill()
        raise
    if process.returncode:
        words = " ".join(said.decode(errors="replace").split()) or f"exit code {process.returncode}"
        raise NetplugError("unavailable", f"resolvconf {arguments[0]} failed: {words}")
