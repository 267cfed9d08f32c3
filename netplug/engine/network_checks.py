"""What is refused of a network before anything is changed, when it is created as when it is updated."""

from collections.abc import Collection, Mapping

from netplug.drivers.api import Network, Subnet
from netplug.drivers.steps import IPAddress, IPNetwork
from netplug.engine.records import EndpointRecord, FrontEnd, NetworkRecord, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError

MOST_LABELS = 65_536
"""Characters of all labels of a network: a record in etcd has room for 1.5 MiB."""
_NAMED = 3
"""Of the endpoints in a subnet so many are named."""


def refuse_labels(net: Network, labels: Mapping[str, str]) -> None:
    """Refuse more labels than a record has room for."""
    size = sum(len(key) + len(value) for key, value in labels.items())
    if size > MOST_LABELS:
        words = f"network {net.name!r} would have {size} characters of labels, and {MOST_LABELS} is the most"
        raise NetplugError("invalid", words, hint="remove some with --label-rm")


def refuse_sticky(net: Network, options: Mapping[str, str], *, external: bool) -> None:
    """Refuse `sticky` if another IPAM chooses the addresses."""
    if net.options.sticky and external:
        value = options["sticky"][:80]
        raise NetplugError(
            "invalid",
            f"option sticky={value}: Docker's own IPAM chooses the addresses of this network",
            hint=f"docker network create -d pynet --ipam-driver pynet -o sticky={value} NAME",
        )


def refuse_subnets(net: Network, spec: NetworkSpec) -> None:
    """Refuse subnets in a mode without addresses. Docker gives each network some, so not from Docker."""
    if spec.subnets and spec.front_end is not FrontEnd.DOCKER:
        mode = net.options.mode
        raise NetplugError(
            "invalid", f"a network of mode {mode!r} has no addresses", hint="leave out --subnet and --ipv6"
        )


def keep_subnets(
    record: NetworkRecord,
    remove: Collection[IPNetwork],
    add: Collection[SubnetSpec],
    endpoints: Collection[EndpointRecord],
) -> dict[Subnet, str]:
    """Return the subnets that stay when some go, each with its pool; refuse what cannot be.

    Raises:
        NetplugError: "forbidden", Docker has the subnets, or endpoints have addresses of one; "not_found"; "invalid",
            none would be left; "exists", one to add is there.
    """
    name = record.network.name
    if (remove or add) and record.front_end is FrontEnd.DOCKER:
        words = f"docker chose the subnets of network {name!r}, and takes no other ones while it lives"
        raise NetplugError("forbidden", words, hint="create another network")
    kept = dict(zip(record.network.subnets, record.pools, strict=True))
    for wanted in remove:
        found = next((subnet for subnet in kept if subnet.pool == wanted), None)
        if found is None:
            there = ", ".join(str(subnet.pool) for subnet in kept) or "none"
            raise NetplugError("not_found", f"network {name!r} has no subnet {wanted}", hint=f"it has {there}")
        _refuse_used(wanted, endpoints)
        del kept[found]
    for spec in add:
        present = next((it.pool for it in kept if spec.pool and spec.pool.overlaps(it.pool)), None)
        if present is not None:
            raise NetplugError("exists", f"subnet {spec.pool} overlaps {present}, which network {name!r} has")
    if remove and not (kept or add):
        raise NetplugError(
            "invalid", f"network {name!r} would be left without a subnet", hint="add another one as well"
        )
    return kept


def _refuse_used(subnet: IPNetwork, endpoints: Collection[EndpointRecord]) -> None:
    inside = [one for one in endpoints if any(address in subnet for address in one.endpoint.addresses)]
    if inside:
        names = sorted(one.name or one.endpoint.id[:12] for one in inside)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        words = f"subnet {subnet} has addresses of {', '.join(names[:_NAMED])}{more}"
        raise NetplugError("forbidden", words, hint="remove them from the network first")


def refuse_anycast(net: Network, wanted: Collection[IPAddress]) -> None:
    """Refuse an address that each router of its subnet has (RFC 4291 §2.6.1; for /127 see RFC 6164).

    The host would answer in the endpoint's place.

    Raises:
        NetplugError: "invalid".
    """
    for pool in (subnet.pool for subnet in net.subnets if subnet.pool.version == 6 and subnet.pool.prefixlen <= 126):
        if pool.network_address in wanted:
            words = f"address {pool.network_address} is the subnet-router anycast address of subnet {pool}"
            raise NetplugError("invalid", words, hint="choose another address")
