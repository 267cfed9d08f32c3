"""Goals of the benches, and whether a result meets them: one wording for all benches."""


def at_most(found: float, goal: float | None, unit: str = "") -> str:
    """Return a goal that is an upper limit, and whether it holds; empty without a goal."""
    return "" if goal is None else f"≤ {goal:g}{unit}: {_verdict(held=found <= goal)}"


def at_least(found: float, goal: float | None, unit: str = "") -> str:
    """Return a goal that is a lower limit, and whether it holds; empty without a goal."""
    return "" if goal is None else f"≥ {goal:g}{unit}: {_verdict(held=found >= goal)}"


def _verdict(*, held: bool) -> str:
    return "holds" if held else "MISSED"
