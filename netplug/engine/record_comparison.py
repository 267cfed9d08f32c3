"""Comparison of all records with the kernel."""

from collections.abc import Mapping, Sequence

from netplug.drivers.plan import Plan
from netplug.drivers.steps import Step
from netplug.engine import Engine
from netplug.engine.conditions import Difference
from netplug.engine.firewalld import blocked
from netplug.engine.foreign_addresses import conflicting
from netplug.engine.looks import Look, names_of, owners_of, unknown_of
from netplug.engine.records import NetworkRecord
from netplug.kernel.api import Drift


class RecordComparison:
    """Compares the plans of all records with the kernel."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def look(self) -> Look:
        """Compare, and report what of the host is in the way of networks. Changes nothing."""
        engine = self._engine
        before, changing = self.plans(), self._changing()
        owners = owners_of(before)
        seen = await engine.kernel.compare(list(owners))
        # Read both again afterwards: an object that was created or deleted meanwhile is neither drift nor unknown.
        after, changing = self.plans(), changing | self._changing()
        now = owners if after == before else owners_of(after)
        drifts = [drift for drift in seen.drifts if drift.step in now and drift.step.key not in changing]
        known = owners if now is owners else owners | now
        unknown = self._unknown(seen.owned.steps(), known, changing)
        engine.base_plan.see(seen.facts)
        nets = [record.network for record in engine.registry.networks()]
        engine.conditions.report(
            "firewalld", blocked(engine.base_plan.host, nets, engine.drivers) if engine.base_plan.plan else ()
        )
        engine.conditions.report("conflict", conflicting(engine.base_plan.host, engine.registry.networks()))
        engine.exposure.see(seen.facts)
        return Look(
            [Difference(owners[it.step], it.step.key, self._with_reason(it)) for it in drifts]
            + [Difference("host", step.key, "belongs to no record") for step in unknown],
            {drift.step: drift.what for drift in drifts},
            unknown,
        )

    def _with_reason(self, drift: Drift) -> str:
        """Return how a step differs, and why that could not be repaired, if that was tried."""
        why = self._engine.executor.refused.get(drift.step.key)
        return f"{drift.what} (repair failed: {why})" if why else drift.what

    def plans(self) -> list[tuple[str, Plan]]:
        """Return all plans, each with its owner."""
        registry, peers = self._engine.registry, self._engine.peers
        found = [("host", self._engine.base_plan.plan)]
        for network in registry.networks():
            found += [(network.described, network.plan), (peers_of(network), peers.plan(network.network.id))]
        return found + [(endpoint.described, endpoint.present) for endpoint in registry.endpoints()]

    def unknown(self, owned: Sequence[Step]) -> list[Step]:
        """Return those of some marked objects that are without a record now."""
        return self._unknown(owned, owners_of(self.plans()), self._changing())

    def _unknown(self, owned: Sequence[Step], owners: Mapping[Step, str], changing: frozenset[str]) -> list[Step]:
        """Return marked objects without a record; exclude those that a quarantined record may have created."""
        found, quarantine = unknown_of(owned, owners, changing), self._engine.quarantine
        if found and quarantine:
            keys, words = quarantine.keys(), quarantine.words()
            found = [step for step in found if step.key not in keys and words.isdisjoint(names_of(step))]
        return self._engine.peers.unknown(found)

    def _changing(self) -> frozenset[str]:
        engine = self._engine
        changing = engine.journal.changing() | engine.peers.changing() | engine.base_plan.changing()
        return changing | engine.convergence.changing()


def peers_of(record: NetworkRecord) -> str:
    """Return how differences name the peers of a network, as their owner."""
    return f"peers of network {record.network.name}"
