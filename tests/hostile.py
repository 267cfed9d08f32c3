"""What a user, a runtime or a damaged record may say where something else is wanted; and mutations of what is valid."""

import os
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from netplug.drivers.codec import decode, encode
from netplug.drivers.plan import Plan
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, NetworkRecord

TEXTS = (
    *(
        "",
        " ",
        ".",
        "..",
        "/",
        "-",
        "--help",
        "%s%n",
        "\0",
        "a\0b",
        "a\nb",
        "a\rb",
        "\x1b[2J\x1b]0;x\x07",
        "a b",
        "\u202egnp",
    ),
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "../" * 9 + "proc/sys/net/ipv4/ip_forward",
        "/proc/self/ns/net",
        "all",
        "default",
    ),
    *(
        "$(reboot)",
        "`reboot`",
        "; reboot #",
        "| nft flush ruleset",
        '"; flush ruleset; #',
        "}\nflush ruleset\n{",
        "' -j ACCEPT",
    ),
    *(
        "-A INPUT -j ACCEPT",
        "\n[Service]\nExecStart=/bin/sh\n",
        "nameserver 6.6.6.6\nsearch x",
        "<script>alert(1)</script>",
    ),
    *("x" * 15, "x" * 16, "é" * 7, "é" * 8, "x" * 129, "x" * 5000, "\ud800", "١٢", "lo", "eth0", "docker0"),
    *(
        "fe80::1%x\n$(reboot)",
        "::ffff:10.1.0.9",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
    ),
    *("0", "-1", "1e9", "4294967296", "9" * 30, "0x10", "NaN", "true", "null", "{}", "[]"),
)
NETWORKS = (
    *(
        "0.0.0.0/0",
        "::/0",
        "10.1.0.0/32",
        "10.1.0.0/31",
        "fd00::/127",
        "fd00::/128",
        "10.1.0.1/24",
        "10.0.0.0/33",
        "fd00::/129",
    ),
    *(
        "224.0.0.0/4",
        "239.0.0.0/24",
        "ff02::/64",
        "127.0.0.0/8",
        "127.9.0.0/16",
        "::1/128",
        "169.254.0.0/16",
        "fe80::/64",
    ),
    *(
        "240.0.0.0/4",
        "255.255.255.0/24",
        "0.0.0.0/8",
        "1.0.0.0/1",
        "8000::/1",
        "::ffff:10.0.0.0/104",
        "10.0.0.0/-1",
        "10/8",
    ),
    *("10.0.0.0/255.0.255.0", "fe80::%x/64", "10.0.0.0/08", "999.0.0.0/8", "/", "/24", "10.0.0.0/9999999999999999999"),
)
OTHERS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 65536, 2**31, 2**64, -(2**64), 10**400, 1.5, float("inf"), float("nan")),
    *([], [[]], {}, {"": ""}, [None], [{}], {"a": {"b": []}}, ["x"] * 2000, [0] * 50, {"x" * 300: 1}),
)
VALUES = st.one_of(st.sampled_from(TEXTS), st.sampled_from(NETWORKS), st.sampled_from(OTHERS), st.text(max_size=20))

INTERNAL = re.compile(
    r"Traceback|NoneType|object has no attribute|not subscriptable|not iterable|unhashable|KeyError|TypeError"
    r"|ValueError|internal error|<class|<netplug| at 0x[0-9a-f]{6}|codec can't|positional argument|takes \d+ arg"
    r"|is not a valid [A-Z]"
    r"|maximum recursion|Error\(|dictionary|pydantic|\bstr\b.*\bexpected\b|float NaN"
)
"""Words of an answer that tell a programmer something, and a user nothing."""


def places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the paths of all values in JSON."""
    yield at
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in pairs:
        yield from places(value, (*at, key))


def changed(data: Any, path: tuple[Any, ...], value: Any, how: str) -> Any:
    """Return a copy with another value at a path; `how`: "set", "drop" or "add"."""
    if not path:
        return value if how == "set" else data
    copy = deepcopy(data)
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    last = path[-1]
    if how == "set":
        holder[last] = value
    elif how == "drop":
        del holder[last]
    elif isinstance(holder, dict):
        holder[value if isinstance(value, str) else "extra"] = deepcopy(holder[last])
    else:
        holder.append(value)
    return copy


@st.composite
def mutated(draw: st.DrawFn, valid: Any, *, most: int = 2) -> Any:
    """Return valid JSON with a few values replaced, taken away or put in."""
    data = valid
    for _ in range(draw(st.integers(1, most))):
        found = list(places(data))
        path = draw(st.sampled_from(found[1:] or found))
        data = changed(data, path, draw(VALUES), draw(st.sampled_from(("set", "set", "set", "drop", "add"))))
    return data


def readable(engine: Engine) -> None:
    """Demand that what was taken can be read from the store again."""
    for network in engine.registry.networks():
        decode(NetworkRecord, encode(network))
    for endpoint in engine.registry.endpoints():
        decode(EndpointRecord, encode(endpoint))
    Plan.from_json(engine.base_plan.plan.to_json())


def raw_texts(valid: bytes) -> st.SearchStrategy[bytes]:
    """Return octets where JSON is wanted: cut, damaged, deep, or anything."""
    return st.one_of(
        st.sampled_from(
            (
                b"",
                b"\0",
                b"null",
                b"[]",
                b"7",
                b'"x"',
                b"{",
                b"\xff\xfe{}",
                b"[" * 200_000,
                b'{"a":' * 100_000,
                b"1" * 5000,
            )
        ),
        st.integers(0, len(valid)).map(lambda at: valid[:at]),
        st.tuples(st.integers(0, max(len(valid) - 1, 0)), st.binary(min_size=1, max_size=2)).map(
            lambda it: valid[: it[0]] + it[1] + valid[it[0] + 1 :]
        ),
        st.binary(max_size=60),
    )


def often(examples: int) -> settings:
    """Return settings for so many examples, always the same; NETPLUG_FUZZ=N: N times as many, others each time."""
    times = int(os.environ.get("NETPLUG_FUZZ", "0"))
    return settings(
        max_examples=examples * (times or 1),
        deadline=None,
        derandomize=not times,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
