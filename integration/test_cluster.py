"""Networks over several hosts by one etcd, on real kernels: daemons on hosts of their own behind a router."""

from collections.abc import Iterator

import pytest
from harness.cluster import Cluster, cluster, needs_etcd

pytestmark = needs_etcd


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with cluster(2) as it:
        yield it


def test_namespaces_on_two_hosts_reach_each_other(two: Cluster) -> None:
    here, there = two.members
    with two.network("blue") as net, two.station(here, net) as one, two.station(there, net) as other:
        assert one.addresses != other.addresses
        assert one.pings(other.addresses[0])
        assert other.pings(one.addresses[0])
