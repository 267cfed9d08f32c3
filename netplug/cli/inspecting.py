"""`netplug network inspect`: one network, with its subnets, options and endpoints."""

from collections.abc import Iterable
from typing import Any

from netplug.cli import NO, CliError
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, NetworkRef, RunDir
from netplug.cli.output import emit, emit_json, note, short, table


def inspect(network: NetworkRef, as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Show a network.

    The text has its subnets and how full they are, the options that differ from their defaults, and its endpoints.
    """
    client = Client(run_dir.absolute())
    found = client.get("networks", network)
    note(found)
    if as_json:
        emit_json(found)
        return
    try:
        pools = client.get("ipam")["pools"]
    except CliError as exc:
        if exc.code != NO:
            raise
        pools = []  # a refusal there must not hide the network
    emit(describe(found, pools))


def describe(network: dict[str, Any], pools: list[dict[str, Any]]) -> str:
    """Return a network as text: what it is, then a table for each kind of its parts that it has."""
    parts = [_head(network)]
    if network["subnets"]:
        parts.append(_subnets(network, pools))
    if rows := _options(network):
        parts.append(table(("option", "value", "default"), rows))
    parts.append(_endpoints(network["endpoints"]) if network["endpoints"] else "no endpoints")
    return "\n\n".join(parts)


def _head(network: dict[str, Any]) -> str:
    labels = [f"{key}={value}" if value else key for key, value in network["labels"].items()]
    rows = {
        "name": network["name"],
        "id": network["id"],
        "mode": network["mode"],
        "mtu": str(network["mtu"]) if network["mtu"] else "the uplink's",
        "internal": "yes: no default route, no published ports" if network["internal"] else "no",
        "made by": network["front_end"],
        "created": network["created"] or "",
        "labels": ", ".join(labels),
        "changed": _changed(network),
    }
    width = max(map(len, rows)) + 1
    return "\n".join(f"{key + ':':{width}} {value}" for key, value in rows.items() if value)


def _changed(network: dict[str, Any]) -> str:
    """Return the values that options had at first, of those that were updated."""
    before, now = network["as_created"]["options"], network["options"]
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key} was {before.get(key, 'not set')}" for key in keys)


def _subnets(network: dict[str, Any], pools: list[dict[str, Any]]) -> str:
    rows = []
    for subnet in network["subnets"]:
        pool = _pool(network["name"], subnet["subnet"], pools)
        gateway = subnet["gateway"] or "none"
        if pool is None:
            rows.append((subnet["subnet"], gateway, "of another IPAM", "", "", "", ""))
            continue
        free = max(pool["size"] - pool["used"] - pool["kept"], 0)
        share = 100 * (pool["used"] + pool["kept"]) / max(pool["size"], 1)
        fill = f"{share:.0f}%" if share >= 1 or not pool["used"] else "<1%"
        numbers = (str(pool["used"]), str(pool["kept"]), _count(free))
        rows.append((subnet["subnet"], gateway, pool["range"] or "all", *numbers, fill))
    return table(("subnet", "gateway", "range", "used", "kept", "free", "full"), rows)


def _pool(network: str, subnet: str, pools: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    return next((it for it in pools if it["subnet"] == subnet and network in it["networks"]), None)


def _count(number: int) -> str:
    """Return a number of addresses; those of IPv6 as a power of two.

    >>> _count(253), _count(2**64 - 3)
    ('253', 'about 2^64')
    """
    return str(number) if number < 1 << 32 else f"about 2^{(number - 1).bit_length()}"


def _options(network: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the options that were given and differ from the default; those of other drivers without a default."""
    from netplug.drivers.shared import SHARED  # noqa: PLC0415 - only this form needs it

    known = {key: option for option in SHARED for key in (option.key, *option.aliases)}
    rows = []
    for key, value in sorted(network["options"].items()):
        option = known.get(key)
        if option is None:
            rows.append((key, value, ""))
        elif option.key not in {"mode", "name"} and value.lower() != option.default:
            rows.append((option.key, value, option.default))
    return rows


def _endpoints(rows: list[dict[str, Any]]) -> str:
    columns = ("endpoint", "name", "container", "addresses", "mac", "host", "interface", "ports")
    return table(
        columns,
        [
            (
                short(row["id"]),
                row["name"],
                short(row["container"]),
                [address.partition("/")[0] for address in row["addresses"]],
                row["mac"],
                row["host"],
                row["interface"],
                row["ports"] or [""],
            )
            for row in rows
        ],
    )
