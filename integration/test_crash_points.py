"""Hard case: the daemon dies by SIGKILL between any two steps, on the real kernel; a sample of `make crash`.

Each case is tried at every so manyeth of the points that `crash.py` counts, from another one on for each case, so that
together they are after every kind of step: journal, links, addresses, sysctls, firewall, ports, records.
"""

import pytest
from crash import Run
from crash_cases import Case, cases

NAMES = (
    "bridge: Docker CreateNetwork, DeleteNetwork",
    "bridge: attach, detach",
    "bridge: CNI ADD, DEL",
    "bridge: repair",
    "macvlan: attach, detach",
    "host: attach, detach",
    "none: attach, detach",
    "bridge: Docker container in our pool",
)
SAMPLE = {case.name: case for case in cases() if case.name in NAMES}
STRIDE = 13


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "case"), list(enumerate(SAMPLE.values())), ids=SAMPLE)
def test_death_at_any_point_leaves_nothing(number: int, case: Case) -> None:
    result = Run(case, STRIDE, first=number % 3 + 1).run()
    leaks = (f"{it.way}, point {it.point}, {it.after}:\n{it.difference}" for it in result.leaks)
    assert not result.leaks, "\n".join(leaks)
    assert result.tried


def test_case_without_a_point_is_no_success() -> None:
    """Nothing would be tried."""
    idle = (lambda scene: scene.run(()),)
    result = Run(Case("none", "nothing", idle, idle)).run()
    assert [(it.way, it.difference.partition(":")[0]) for it in result.leaks] == [
        ("do", "no points"),
        ("undo", "no points"),
    ]
