"""Namespaces of probes."""

from pathlib import Path

import pytest

from netplug.kernel.probes import places
from netplug.kernel.probes.errors import ProbeError


def test_a_namespace_that_ended_is_said_to_be_gone(tmp_path: Path) -> None:
    """Of a container that ends, the file that its namespace was mounted on is left for a moment."""
    left = tmp_path / "4fe2753472f2"
    left.touch()
    with pytest.raises(ProbeError, match=f"namespace {left} is gone: its container has ended"):
        places.run_in(str(left), lambda: None)
