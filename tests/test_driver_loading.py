"""Drivers of other packages: entry points of folders on the path, as installers make them."""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent

import pytest
from structlog.testing import capture_logs

from netplug.daemon.drivers import DRIVERS, load_drivers
from netplug.drivers.api import Network, Scope
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.codec import decode, encode
from netplug.drivers.errors import DriverError
from netplug.drivers.options import NetworkOptions
from netplug.drivers.registry import Drivers


def found() -> Drivers:
    return load_drivers(entry_points(group=DRIVERS))


OURS = {"bridge", "host", "ipam", "macvlan", "none", "overlay"}
DRIVER = """
    from netplug.drivers import option_values, shared
    from netplug.drivers.none import NoneDriver
    from netplug.drivers.options import Option

    def hops(text):
        if not text.isdigit():
            raise ValueError("must be a number")
        return int(text)

    HOPS = Option("hops", hops, "1", "how far", aliases=("org.example.hops",), endpoint=True)

    class Driver(NoneDriver):
        options = (shared.MTU, HOPS)
"""


class Packages:
    """Packages in folders that are on the path."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch

    def add(self, name: str, code: str = DRIVER, *, mode: str = "far", attribute: str = "Driver") -> None:
        module, folder = name.replace("-", "_"), self._folder / name
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(dedent(code))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[netplug.drivers]\n{mode} = {module}:{attribute}\n")
        self._monkeypatch.syspath_prepend(folder)
        self._monkeypatch.delitem(sys.modules, module, raising=False)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    return Packages(tmp_path, monkeypatch)


def refusal(drivers: Drivers, mode: str = "far") -> str:
    with pytest.raises(DriverError) as caught:
        drivers.named(mode)
    assert drivers.missing(mode)
    return str(caught.value)


def test_ours_are_entry_points_as_all_others() -> None:
    drivers = load_drivers()
    assert set(drivers) == OURS
    assert not drivers.refused
    assert (drivers.default(), drivers.default(Scope.CLUSTER)) == ("bridge", "overlay")


def test_driver_of_another_package_has_its_mode_and_options(packages: Packages) -> None:
    packages.add("netplug-far")
    drivers = found()
    assert set(drivers) == OURS | {"far"}
    options = drivers.parse({"mode": "far", "org.example.hops": "3", "com.docker.network.driver.mtu": "1400"})
    assert (options.mode, options.mtu, dict(options.own)) == ("far", 1400, {"hops": 3})
    (hops,) = [it for it in drivers["far"].options if it.key == "hops"]
    assert hops.of(options) == 3
    assert hops.of(options, drivers.parse_endpoint({"hops": "9"}, "far")) == 9
    assert drivers.parse({"mode": "far"}).value("hops") == 1
    assert "hops" not in drivers.parse({}).own


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"mode": "far", "hops": "some"}, "option hops='some': must be a number"),
        ({"mode": "far", "hop": "1"}, r"unknown option 'hop' \(did you mean 'hops'\?\)"),
        ({"mode": "far", "colour": "1"}, r"unknown option 'colour' \(known options: mode, name, mtu, .*, hops\)"),
        ({"mode": "far", "icc": "true"}, "option 'icc' exists only in mode bridge and overlay, .* mode 'far'"),
        ({"hops": "1"}, "option 'hops' exists only in mode far, the network has mode 'bridge'"),
        ({"mode": "far", "hops": "1", "org.example.hops": "2"}, "contradicts another spelling of 'hops'"),
    ],
)
def test_options_of_its_own_are_refused_as_all_others(packages: Packages, raw: dict[str, str], words: str) -> None:
    packages.add("netplug-far")
    with pytest.raises(DriverError, match=words):
        found().parse(raw)


def test_records_keep_options_that_only_a_missing_driver_knows(packages: Packages) -> None:
    packages.add("netplug-far")
    net = Network("1" * 64, "blue", options=found().parse({"mode": "far", "hops": "7"}))
    assert decode(Network, encode(net)) == net
    assert "own" not in str(encode(Network("1" * 64, "blue"))), "earlier versions read what does not need it"
    assert decode(NetworkOptions, {"mode": "bridge"}) == NetworkOptions()


def test_two_packages_with_one_mode_are_both_refused_by_name(packages: Packages) -> None:
    packages.add("netplug-far")
    packages.add("other-far")
    with capture_logs() as logs:
        drivers = found()
    assert set(drivers) == OURS
    assert "packages netplug-far and other-far both bring it, so neither is used" in refusal(drivers)
    assert [line["mode"] for line in logs if line["event"] == "driver.refused"] == ["far"]


def test_no_package_takes_a_mode_of_ours(packages: Packages) -> None:
    packages.add("netplug-far", mode="bridge")
    with capture_logs() as logs:
        drivers = found()
    assert type(drivers["bridge"]) is BridgeDriver
    (line,) = [line for line in logs if line["event"] == "driver.refused"]
    assert (line["package"], line["mode"]) == ("netplug-far", "bridge")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('no such luck')", "netplug-far cannot be used: RuntimeError: no such luck"),
        ("import netplug_nowhere", "ModuleNotFoundError: No module named 'netplug_nowhere'"),
        ("x = 1", "has no attribute 'Driver'"),
        ("def Driver():\n    raise ValueError('not today')", "ValueError: not today"),
        ("class Driver:\n    pass", "lacks scope, gateway, linked, addressed, default, options, complete, segment"),
        (DRIVER + "        join = None\n", "lacks join of the driver protocol"),
        (DRIVER + "        linked = 'yes'\n", "has linked='yes', which is of another type"),
        (DRIVER + "        default = True\n", "claims to be the default"),
        (DRIVER.replace('"hops", hops', '"mtu", hops'), "declares option 'mtu', which netplug has"),
        (DRIVER.replace('"hops", hops', '"own", hops'), "declares option 'own', which netplug has"),
        (DRIVER.replace('"hops", hops', '"no good", hops'), "declares option 'no good', and a key is of"),
        (DRIVER.replace('"1", "how', '"x", "how'), "option 'hops', whose default 'x' cannot be read: must be a number"),
        (DRIVER.replace("return int(text)", "return {1}"), "its parser returns set, which no record can keep"),
        (DRIVER.replace("(shared.MTU, HOPS)", "(shared.MTU, HOPS, HOPS)"), "declares option 'hops' twice"),
        (DRIVER.replace("(shared.MTU, HOPS)", "(shared.MTU, 'hops')"), "declares 'hops', which is not an option"),
        (
            DRIVER + "        from netplug.drivers.api import Scope\n        scope = Scope.CLUSTER\n",
            "lacks publish, check_peer, port, room, peers of the driver protocol",
        ),
    ],
)
def test_broken_driver_is_refused_with_the_reason_and_the_rest_goes_on(
    packages: Packages, code: str, words: str
) -> None:
    packages.add("netplug-far", code)
    packages.add("netplug-near", mode="near")
    with capture_logs() as logs:
        drivers = found()
    assert set(drivers) == OURS | {"near"}
    assert words in refusal(drivers)
    assert [line["package"] for line in logs if line["event"] == "driver.refused"] == ["netplug-far"]
