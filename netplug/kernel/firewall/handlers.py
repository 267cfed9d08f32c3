"""Handlers of what the firewall holds: sets, chains, tables and their entries, tracked connections."""

import asyncio
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from netplug.drivers.ingress import Ingress
from netplug.drivers.steps import Chain, Flows, Forward, Forwards, Guard, Guards, IpSet, Jump, Member, Rule, Step
from netplug.drivers.tunnel import Remote, Shortcut, Shortcuts, Tunnel, Tunnels, Vtep
from netplug.kernel.api import MISSING, Done, Outcome
from netplug.kernel.context import Context
from netplug.kernel.firewall import entries, forwards, guards, ingress, iptables_rules, tunnels
from netplug.kernel.firewall.iptables import Firewall
from netplug.kernel.firewall.iptables_rules import FIREWALL_STEPS, FirewallStep
from netplug.kernel.handlers import BatchHandler, Handler, Lane, LoopHandler
from netplug.kernel.progress import Progress
from netplug.kernel.survey import Survey

_F = TypeVar("_F", Chain, Rule, Jump)
_T = TypeVar("_T", Guards, Forwards, Tunnels, Ingress)
_W = TypeVar("_W", Shortcuts, Shortcut)


class SetHandler(BatchHandler[IpSet]):
    """Sets of ipset."""

    def __init__(self, context: Context) -> None:
        self._sets = context.sets

    def batch(self, step: IpSet) -> Hashable:
        """Return its key: one by one."""
        return step.key

    async def ensure(self, steps: Sequence[IpSet]) -> Sequence[Outcome | Done]:
        """Bring them about."""
        return [await self._sets.ensure_set(step) for step in steps]

    async def remove(self, steps: Sequence[IpSet]) -> None:
        """Destroy them."""
        for step in steps:
            await self._sets.remove_set(step)

    def drift(self, step: IpSet, survey: Survey) -> str:
        """Compare its type."""
        found = survey.sets.get(step.name)
        if found is None:
            return MISSING
        same = (found.type, found.family) == (step.type, step.family)
        return "" if same else f"is a {found.type} of IPv{found.family}, not {step.type}"

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all sets of ours."""
        return (IpSet(name, "", 0) for name in survey.sets)


class MemberHandler(BatchHandler[Member]):
    """Members of sets."""

    def __init__(self, context: Context) -> None:
        self._sets = context.sets

    def batch(self, step: Member) -> Hashable:
        """Return its key: one by one."""
        return step.key

    async def ensure(self, steps: Sequence[Member]) -> Sequence[Outcome | Done]:
        """Bring them about."""
        return [await self._sets.ensure_member(step) for step in steps]

    async def remove(self, steps: Sequence[Member]) -> None:
        """Remove them."""
        for step in steps:
            await self._sets.remove_member(step)

    def drift(self, step: Member, survey: Survey) -> str:
        """Look for it."""
        return "" if step.set in survey.sets and step in survey.sets[step.set].members else MISSING

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all members of sets of ours."""
        return (member for found in survey.sets.values() for member in found.members)


@dataclass(frozen=True, slots=True)
class _IptablesLane:
    """Steps of one IP version: one run of iptables-restore."""

    firewall: Firewall

    async def ensure(self, steps: Sequence[Step], progress: Progress) -> None:
        await self.firewall.ensure(_only(steps), progress.outcomes)

    async def remove(self, steps: Sequence[Step]) -> list[Exception]:
        return list(await self.firewall.remove(_only(steps)))


def _only(steps: Sequence[Step]) -> list[FirewallStep]:
    return [step for step in steps if isinstance(step, FIREWALL_STEPS)]


class IptablesHandler(Handler[_F]):
    """Chains of iptables, and rules in them."""

    def __init__(self, context: Context) -> None:
        self._lanes = {family: _IptablesLane(firewall) for family, firewall in context.firewall.items()}

    def lane(self, step: _F) -> Lane:
        """Return that of its IP version."""
        return self._lanes[step.family]

    def drift(self, step: _F, survey: Survey) -> str:
        """Compare it."""
        return iptables_rules.drift(survey.models[step.family], step)


class ChainHandler(IptablesHandler[Chain]):
    """Chains of ours."""

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return them all."""
        found = ((family, *chain) for family, model in survey.models.items() for chain in model.ours())
        return (Chain(family, table, name, open=True) for family, table, name, _ in found)


class RuleHandler(IptablesHandler[Rule]):
    """Rules in open chains of ours."""

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return them all."""
        found = ((family, *chain) for family, model in survey.models.items() for chain in model.ours())
        return (Rule(family, table, name, rule) for family, table, name, rules in found for rule in rules)


class TableHandler(LoopHandler[_T]):
    """Constant tables of nf_tables."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._tables = context.tables

    def ensure(self, step: _T) -> Outcome:
        """Apply the step."""
        return entries.ensure(self._tables, step)

    def remove(self, step: _T) -> None:
        """Remove it, with all entries."""
        self._tables.remove_table(entries.TABLES[step])

    def drift(self, step: _T, survey: Survey) -> str:
        """Compare it."""
        return survey.tables.wrong[step]

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all these tables."""
        return survey.tables.tables()


class IngressHandler(TableHandler[Ingress]):
    """The tables of ingress; some hosts need none."""

    def ensure(self, step: Ingress) -> Outcome:
        """Apply the step."""
        return Outcome.EQUAL if ingress.needless(step) else super().ensure(step)

    def drift(self, step: Ingress, survey: Survey) -> str:
        """Compare it."""
        return "" if ingress.needless(step) else super().drift(step, survey)

    def owned(self, survey: Survey) -> Iterable[Step]:  # noqa: ARG002 - `TableHandler` tells of all
        """Return nothing."""
        return ()


class GuardHandler(LoopHandler[Guard]):
    """Allowed sources of bridge ports."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._tables = context.tables

    def ensure(self, step: Guard) -> Done:
        """Apply the step."""
        return guards.ensure(self._tables, step)

    def remove(self, step: Guard) -> None:
        """Remove it."""
        self._tables.remove(guards.TABLE, guards.entries(step))

    def drift(self, step: Guard, survey: Survey) -> str:
        """Compare it."""
        return survey.tables.guarded.drift(step)

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all."""
        return survey.tables.guarded.guards()


class ForwardHandler(BatchHandler[Forward]):
    """DNAT of published ports: those of an IP version are one transaction."""

    def __init__(self, context: Context) -> None:
        self._tables = context.tables

    def batch(self, step: Forward) -> Hashable:
        """Return the IP version."""
        return step.family

    async def ensure(self, steps: Sequence[Forward]) -> Sequence[Outcome | Done]:
        """Bring them about."""
        return forwards.ensure(self._tables, steps)

    async def remove(self, steps: Sequence[Forward]) -> None:
        """Remove them."""
        forwards.remove(self._tables, steps)

    def drift(self, step: Forward, survey: Survey) -> str:
        """Compare it."""
        return forwards.drift(step, survey.tables.forwarded[step.family])

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all."""
        return (it for family, found in survey.tables.forwarded.items() for it in forwards.forwards(family, found))


class TunnelHandler(LoopHandler[Tunnel | Vtep]):
    """Which hosts may send VXLAN frames."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._tables = context.tables

    def ensure(self, step: Tunnel | Vtep) -> Outcome:
        """Apply the step."""
        return tunnels.ensure(self._tables, step)

    def remove(self, step: Tunnel | Vtep) -> None:
        """Remove it."""
        self._tables.remove(tunnels.TABLES[step.family], tunnels.entries(step))

    def drift(self, step: Tunnel | Vtep, survey: Survey) -> str:
        """Compare it."""
        return tunnels.drift(step, survey.tables.tunnelled[step.family])

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all."""
        return (it for family, found in survey.tables.tunnelled.items() for it in tunnels.owned(family, found))


class _FastPathHandler(LoopHandler[_W]):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._fast_path = context.fast_path

    def ensure(self, step: _W) -> Outcome:
        """Apply the step."""
        return self._fast_path.ensure(step)

    def remove(self, step: _W) -> None:
        """Remove it."""
        self._fast_path.remove(step)

    def drift(self, step: _W, survey: Survey) -> str:
        """Compare it."""
        return survey.shortcuts.drift(step, survey.host.links)


class ShortcutsHandler(_FastPathHandler[Shortcuts]):
    """Tables of the fast path."""

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all."""
        return (step for step in survey.shortcuts.owned() if isinstance(step, Shortcuts))


class ShortcutHandler(_FastPathHandler[Shortcut]):
    """Ports of the fast path."""

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all."""
        return (step for step in survey.shortcuts.owned() if isinstance(step, Shortcut))


class RemoteHandler(BatchHandler[Remote]):
    """Remote MACs of the fast path: those of a VXLAN link are one transaction."""

    def __init__(self, context: Context) -> None:
        self._fast_path = context.fast_path

    def batch(self, step: Remote) -> Hashable:
        """Return the VXLAN link."""
        return step.vxlan

    async def ensure(self, steps: Sequence[Remote]) -> Sequence[Outcome | Done]:
        """Bring them about."""
        return self._fast_path.ensure_remote(steps)

    async def remove(self, steps: Sequence[Remote]) -> None:
        """Remove them."""
        self._fast_path.remove_remote(steps)

    def drift(self, step: Remote, survey: Survey) -> str:
        """Look for it."""
        return survey.shortcuts.drift(step, survey.host.links)

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all."""
        return (step for step in survey.shortcuts.owned() if isinstance(step, Remote))


class FlowsHandler(BatchHandler[Flows]):
    """Tracked connections: those of a protocol and IP version are one dump. They are never missing."""

    def __init__(self, context: Context) -> None:
        self._flows = context.flows
        self._nl = context.survey

    def batch(self, step: Flows) -> Hashable:
        """Return protocol and IP version."""
        return step.proto, step.address.version

    async def ensure(self, steps: Sequence[Flows]) -> Sequence[Outcome | Done]:
        """Have the kernel forget flows that lead elsewhere."""
        new = await asyncio.to_thread(self._flows.ensure, steps, self._nl)
        return [Outcome.CREATED if item else Outcome.EQUAL for item in new]

    async def remove(self, steps: Sequence[Flows]) -> None:
        """Have the kernel forget flows that lead there."""
        await asyncio.to_thread(self._flows.remove, steps)

    def drift(self, step: Flows, survey: Survey) -> str:  # noqa: ARG002
        """Return nothing."""
        return ""
