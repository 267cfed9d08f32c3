"""What kernel objects are wanted, in order: what a driver computes, and an executor brings about."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .codec import Json, JsonObject, decode, decode_known, encode
from .step_types import STEP_TYPES
from .steps import Address, Loopback, Macvlan, Route, SourceRoute, Step, Veth

_RETIRED = frozenset(
    (
        *("IpSet", "Member", "Chain", "Rule", "Jump", "Guards", "Guard", "Forwards", "Forward", "Ingress"),
        *("Tunnels", "Tunnel", "Vtep", "Shortcuts", "Shortcut", "Remote"),
    )
)
"""Kinds of steps that earlier versions stored. What they made is found by its marks, and removed (`FormerRules`)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order in which they are applied; reverting goes backwards.

    >>> from netplug.drivers.steps import Loopback
    >>> [step.key for step in Plan((Loopback("/run/netns/a"),)) + Plan()]
    ['loopback//run/netns/a']
    """

    steps: tuple[Step, ...] = ()

    def __add__(self, other: "Plan") -> "Plan":
        return Plan(self.steps + other.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def without(self, keys: Iterable[str]) -> "Plan":
        """Return the plan less the steps of these keys."""
        gone = frozenset(keys)
        return Plan(tuple(step for step in self.steps if step.key not in gone)) if gone else self

    def of_namespace(self, netns_id: str) -> "Plan":
        """Return the plan with this very namespace meant by all steps that are, or may be, in a sandbox."""

        def meant(step: Step) -> Step:
            match step:
                case Address(netns=str()) | Route(netns=str()) | SourceRoute() | Loopback():
                    return replace(step, netns_id=netns_id)
                case Macvlan() | Veth() if step.netns or step.moved:
                    return replace(step, netns_id=netns_id)
            return step

        return Plan(tuple(meant(step) for step in self))

    def to_json(self) -> list[Json]:
        """Return the stored form: a list of objects whose `step` is the type.

        Raises:
            DriverError: "invalid", a type that no package registered.
        """
        return [{"step": STEP_TYPES.name(step), **_fields(step)} for step in self.steps]

    @classmethod
    def from_json(cls, data: Json) -> "Plan":
        """Return the plan that `to_json` wrote.

        Raises:
            ValueError: not a plan, or one with a kind of step that this version does not know.
        """
        if not isinstance(data, list):
            raise ValueError("a plan is stored as a list")
        return cls(tuple(_step(item) for item in data if not _is_retired(item)))

    @classmethod
    def known(cls, data: Json) -> "Plan":
        """Return those steps of a stored plan that this version knows, as far as it does."""
        parts = map(_parts, data if isinstance(data, list) else ())
        found = (
            decode_known(kind, fields) for kind, fields in ((STEP_TYPES.get(name), it) for name, it in parts) if kind
        )
        return cls(tuple(step for step in found if step is not None))


def _fields(step: Step) -> JsonObject:
    data = encode(step)
    assert isinstance(data, dict)  # noqa: S101 - a dataclass encodes to an object
    if not data.get("netns_id", True):
        del data["netns_id"]
    return data


def _step(data: Json) -> Step:
    kind, fields = _parts(data)
    found = STEP_TYPES.get(kind)
    if found is None:
        raise ValueError(f"a plan has a step {kind or data!r}, which is not known")
    return decode(found, fields)


def _parts(data: Json) -> tuple[str, JsonObject]:
    """Return kind and fields of a stored step; no kind: it is none."""
    if not isinstance(data, dict):
        return "", {}
    kind = data.get("step")
    return kind if isinstance(kind, str) else "", {name: value for name, value in data.items() if name != "step"}


def _is_retired(data: Json) -> bool:
    return _parts(data)[0] in _RETIRED
