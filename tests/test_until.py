"""A test that waits in vain tells what it saw."""

import living
import pytest


def test_wait_in_vain_tells_what_the_called_functions_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(living, "DEADLINE_S", 0)

    def seen(host: str) -> list[str]:
        return [host.upper()]

    with pytest.raises(AssertionError, match=r"not in 0 s: both are there; at last: seen\(\) == \['ONE'\]$"):
        living.until(lambda: len(seen("one")) == 2, "both are there")
    with pytest.raises(AssertionError, match=r"never; at last: False$"):
        living.until(lambda: not monkeypatch, "never")
    living.until(lambda: seen("one") == ["ONE"], "it is there")
