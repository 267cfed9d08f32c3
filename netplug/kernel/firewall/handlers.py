"""Handlers of what the firewall holds: tables and their elements, the gate in iptables, tracked connections."""

import asyncio
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from netplug.drivers.steps import Element, Flows, FormerRules, Gate, Hook, Passage, Step, Table
from netplug.kernel.api import MISSING, Done, Outcome, StepError
from netplug.kernel.firewall import compiler, gate_rules, table_marks, tables
from netplug.kernel.firewall.compiler import CompileError
from netplug.kernel.firewall.iptables import UnavailableError
from netplug.kernel.firewall.tables import FirewallStep, Tables
from netplug.kernel.handlers import BatchHandler, Handler, Lane
from netplug.kernel.progress import Progress, naming
from netplug.kernel.survey import Survey

if TYPE_CHECKING:
    from netplug.kernel.context import Context

_T = TypeVar("_T", Table, Element, Hook)


@dataclass(frozen=True, slots=True, eq=False)
class TablesLane:
    """Steps about our tables: one transaction."""

    tables: Tables

    async def ensure(self, steps: Sequence[Step], progress: Progress) -> None:
        """Apply steps; see `Lane`."""
        with naming(steps[0]):
            for step in self.tables.uncompiled(_ours(steps)):
                # It makes a namespace, which waits for whoever changes links.
                await asyncio.to_thread(table_marks.compiled, step)
            progress.record_all(steps, self.tables.ensure(_ours(steps)))

    async def remove(self, steps: Sequence[Step]) -> list[Exception]:
        """Remove steps; see `Lane`. What is refused together is tried one by one."""
        try:
            with naming(steps[0]):
                self.tables.remove(_ours(steps))
        except StepError as error:
            if len(steps) == 1:
                return [error]
            return [failure for step in steps for failure in await self.remove((step,))]
        return []


def _ours(steps: Sequence[Step]) -> list[FirewallStep]:
    return [step for step in steps if isinstance(step, Table | Element | Hook)]


class _TablesHandler(Handler[_T]):
    def __init__(self, context: "Context") -> None:
        self._lane = context.tables

    def lane(self, step: _T) -> Lane:  # noqa: ARG002
        """Return that of all tables."""
        return self._lane


GONE = "Error: No such file or directory"
"""What nft says of a table that there is not."""


class TableHandler(_TablesHandler[Table]):
    """Constant tables of nf_tables."""

    def drift(self, step: Table, survey: Survey) -> str:
        """Compare it with its text, and tell the lines that differ."""
        name = table_marks.of(step)
        found = survey.tables.images.get(name)
        if found is None:
            return MISSING
        try:
            if table_marks.is_right(step, survey.tables.marks[name], found):
                return ""
            return compiler.difference(step.family, step.name, step.text) or "its rules differ"
        except (CompileError, StepError) as error:
            gone = GONE in str(error)  # since the look
            return MISSING if gone else f"its rules differ ({error})"

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all tables of ours."""
        for name in survey.tables.images:
            family, _, bare = name.partition(" ")
            yield Table(family, bare, "")


class ElementHandler(_TablesHandler[Element]):
    """Elements of sets and maps in our tables."""

    def drift(self, step: Element, survey: Survey) -> str:
        """Compare it."""
        kind = survey.tables.types.get(step.table, {}).get(step.set)
        if kind is None:
            return MISSING
        content = survey.tables.content[step.table][step.set]
        for part in tables.parts(step):
            try:
                key, data = tables.encoded(part, kind, step)
            except StepError:
                return MISSING
            found = content.get(key)
            if found is None:
                return MISSING
            if found != data:
                return f"is {kind.decode(key, found)[1]}, not {part.data}"
        return ""

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all elements."""
        for table, sets in survey.tables.content.items():
            for name, elements in sets.items():
                kind = survey.tables.types[table][name]
                yield from (Element(table, name, *kind.decode(*it)) for it in elements.items())


class HookHandler(_TablesHandler[Hook]):
    """Base chains of links in our tables."""

    def drift(self, step: Hook, survey: Survey) -> str:
        """Compare it."""
        found = survey.tables.hooks.get(step.table, {}).get(step.link)
        if found is None:
            return MISSING
        return "" if found == step.chain else f"leads to {found or 'other rules'}, not {step.chain}"

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all."""
        for table, chains in survey.tables.hooks.items():
            yield from (Hook(table, link, chain) for link, chain in chains.items())


class GateHandler(BatchHandler[Gate | Passage]):
    """The gate in iptables: that of an IP version and flavour is one transaction."""

    def __init__(self, context: "Context") -> None:
        self._iptables = context.iptables

    def batch(self, step: Gate | Passage) -> Hashable:
        """Return IP version and flavour."""
        return step.family, step.flavour

    async def ensure(self, steps: Sequence[Gate | Passage]) -> Sequence[Outcome | Done]:
        """Bring it about."""
        return await self._iptables[steps[0].family].ensure(steps)

    async def remove(self, steps: Sequence[Gate | Passage]) -> None:
        """Remove it."""
        await self._iptables[steps[0].family].remove(steps)

    def drift(self, step: Gate | Passage, survey: Survey) -> str:
        """Compare it."""
        return gate_rules.drift(step, survey.filters.get(step.family, {}))

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all."""
        return (it for family, found in survey.filters.items() for it in gate_rules.owned(family, found))


class FormerRulesHandler(BatchHandler[FormerRules]):
    """What a former release has left. Nobody wants it, so it is swept."""

    def __init__(self, context: "Context") -> None:
        self._former = context.former

    def batch(self, step: FormerRules) -> Hashable:
        """Return its key."""
        return step.key

    async def ensure(self, steps: Sequence[FormerRules]) -> Sequence[Outcome | Done]:
        """Make nothing."""
        raise StepError("invalid", steps[0], "rules of a former release cannot be made")

    async def remove(self, steps: Sequence[FormerRules]) -> None:
        """Remove all."""
        try:
            await self._former.remove()
        except UnavailableError as error:
            raise StepError("internal", steps[0], str(error)) from error

    def drift(self, step: FormerRules, survey: Survey) -> str:  # noqa: ARG002
        """Return nothing."""
        return ""

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return it, if there is something."""
        return (survey.former,) if survey.former else ()


class FlowsHandler(BatchHandler[Flows]):
    """Tracked connections: those of a protocol and IP version are one dump. They are never missing."""

    def __init__(self, context: "Context") -> None:
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
