"""New settings for a daemon that runs: SIGHUP, `systemctl reload netplug`.

What can change at run time does. The log names what needs a restart, at each reload until it happens. Settings that
are refused change nothing: the daemon goes on with those that it has, and `netplug diff` shows the reason.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import structlog

from netplug import log as logging
from netplug.config import Settings
from netplug.daemon.address_spaces import site_prefix, spaces
from netplug.daemon.composition import Composition
from netplug.daemon.systemd import notify_surely
from netplug.engine.conditions import Difference
from netplug.errors import NetplugError
from netplug.tasks.apart import apart

log = structlog.get_logger(__name__)

SOURCE = "settings"
"""The source of the condition that the settings are refused."""

_LOGGING = frozenset({"log_format", "log_level"})
_NAMES = frozenset({"dns_upstream", "dns_special", "dns_rebinding"})
_POOLS = frozenset({"address_pool"})
AT_RUN_TIME = _LOGGING | _NAMES | _POOLS
"""Settings that a reload changes."""


class Reloading:
    """Keeps a daemon's settings. `read`: returns those that the sources have now; blocks."""

    def __init__(self, settings: Settings, read: Callable[[], Settings]) -> None:
        self.settings = settings
        self._read = read
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Have `run` reload, at once or when it runs."""
        self._asked.set()

    async def run(self, parts: Composition) -> None:
        """Reload whenever asked, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            # As the protocol of sd_notify(3) has it: systemd shows the service as reloading meanwhile.
            await notify_surely(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                await self.reload(parts)
            finally:
                await notify_surely("READY=1")

    async def reload(self, parts: Composition) -> None:
        """Read the settings, and use what can be used now."""
        try:
            wanted = await apart(self._read)
        except NetplugError as exc:
            log.error("settings.refused", reason=exc.message, hint=exc.hint or "the former settings stay")  # noqa: TRY400
            parts.engine.conditions.report(SOURCE, [Difference("host", "settings", f"refused: {exc.message}")])
            return
        parts.engine.conditions.report(SOURCE, ())
        changed = {name for name in Settings.model_fields if getattr(wanted, name) != getattr(self.settings, name)}
        now = changed & AT_RUN_TIME
        self.settings = self.settings.model_copy(update={name: getattr(wanted, name) for name in now})
        await self._use(parts, now)
        if later := changed - AT_RUN_TIME:
            log.warning("settings.need_restart", settings=sorted(later), hint=wanted.restart_hint)
        log.info("settings.reloaded", changed=dict(self._shown(now)))

    async def _use(self, parts: Composition, changed: set[str]) -> None:
        settings = self.settings
        if changed & _LOGGING:
            logging.reconfigure(settings.log_format, settings.log_level)
        if changed & _NAMES:
            special, refuse = settings.dns_special == "host", settings.dns_rebinding == "refuse"
            parts.name_server.use_upstreams(settings.dns_rules, special=special, refuse_rebinding=refuse)
        if changed & _POOLS:
            prefix = await site_prefix(parts.host.store)
            parts.engine.allocator.use_spaces(spaces(prefix, settings.address_pool))
        parts.insight.follow(settings)

    def _shown(self, names: set[str]) -> Mapping[str, str]:
        found = {name: getattr(self.settings, name) for name in sorted(names)}
        return MappingProxyType(
            {name: " ".join(map(str, it)) if isinstance(it, tuple) else str(it) for name, it in found.items()}
        )
