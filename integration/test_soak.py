"""The short form of `make soak`: churn of all runtimes on three hosts, with kills, leaves the hosts as they were."""

from dataclasses import replace
from shutil import which

import pytest
from harness.cluster import needs_etcd
from soak import Figures, soak

pytestmark = [needs_etcd, pytest.mark.skipif(which("podman") is None, reason="needs podman (make setup)")]
SEED = 17
SECONDS = 35
KILL_EVERY_S = 5


@pytest.mark.timeout(480)
def test_hosts_are_as_before_when_containers_came_and_went_while_daemons_were_killed() -> None:
    result = soak(SECONDS, SEED, warm_up_s=8, kill_every_s=KILL_EVERY_S, quiet=True)
    assert not result.problems(), result
    assert all(result.done[kind] for kind in ("docker", "pod", "cni", "attach")), result
    assert sum(result.killed.values()) >= 3, result
    assert result.pings[0] > SECONDS * 5


def test_what_is_larger_at_the_end_is_told() -> None:
    before = Figures(60, 80.0, 40, 5, 10, 17, 4, 7, 600)
    assert replace(before, lived_s=1260, rss_mb=91.9, descriptors=48, connections=30).grown(before) == []
    grown = replace(before, rss_mb=92.1, threads=8, records=18, links=6).grown(before)
    assert grown == ["rss_mb: 80.0 -> 92.1", "threads: 5 -> 8", "records: 17 -> 18", "links: 7 -> 6"]
