"""What others cause is looked at soon, and takes a small part of the time in the long run."""

import pytest

from netplug.engine.allowance import Allowance


def test_a_burst_of_changes_is_looked_at_without_a_pause() -> None:
    allowance = Allowance(now=0.0, share=20)
    assert [allowance.spend(0.1 * turn, 0.05) for turn in range(15)] == [0.0] * 15


@pytest.mark.parametrize("spent_s", [0.002, 0.05, 0.7])
def test_changes_without_end_cost_a_twentieth_of_a_processor(spent_s: float) -> None:
    allowance, now, looks = Allowance(now=0.0, share=20), 0.0, 0
    while now < 1000:
        now += spent_s
        now += max(0.02, allowance.spend(now, spent_s))
        looks += 1
    assert looks * spent_s == pytest.approx(1000 / 20, rel=0.05)


def test_what_is_saved_comes_back() -> None:
    allowance = Allowance(now=0.0, share=20)
    assert allowance.spend(1.0, 1.2) == pytest.approx(0.2 * 20)
    assert allowance.spend(5.0, 0.1) == pytest.approx(0.1 * 20)
    assert allowance.spend(1000.0, 0.9) == 0.0


def test_no_pause_is_longer_than_a_quarter_of_a_minute() -> None:
    allowance = Allowance(now=0.0, share=20)
    assert [allowance.spend(15.0 * turn, 9.0) for turn in range(4)] == [15.0] * 4
