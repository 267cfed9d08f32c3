"""NetworkManager and systemd-networkd leave netplug's links alone, with the files that netplug brings for them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Host, Netplug, attached, cli_network, connect, wait_until
from harness.managers import Managers, needs_managers

import netplug

pytestmark = needs_managers
NewHost = Callable[..., Host]
FILES = Path(netplug.__file__).with_name("host_files")
OURS = ("np-", "nph", "npi")
SETTLE_S = 15
ONLINE_S = 5
"""Deadline of systemd-networkd-wait-online where it shall wait for a link of ours."""


class Populated:
    """A host with an uplink, whose daemon has a network with a shaped container, and a link for the host's names."""

    def __init__(self, host: Host, far: Host) -> None:
        self.host = host
        self.managers = Managers(host)
        connect(host, far)
        self.managers.resolved()
        self.netplug = Netplug(host, "--docker-host", "none")

    def give(self, folder: str, to: str) -> None:
        """Install the files for a program, as packages do."""
        self.host.run(["mkdir", "-p", to])
        for path in (FILES / folder).iterdir():
            self.host.run(["sh", "-ec", f"cat > {to}/{path.name}"], stdin=path.read_text())

    def links(self) -> dict[str, Any]:
        """Return our links with what a manager could change of them."""
        found = json.loads(self.host.output("ip", "-j", "addr"))
        return {
            it["ifname"]: (it["flags"], it["mtu"], sorted(a["local"] for a in it["addr_info"] if a["scope"] != "link"))
            for it in found
            if it["ifname"].startswith(OURS)
        }


@pytest.fixture
def populated(new_host: NewHost) -> Iterator[Populated]:
    it = Populated(new_host("managed"), new_host("far"))
    it.netplug.cli("dns", "host", "on")
    with cli_network(it.netplug) as net, attached(it.netplug, net, "-o", "rate=10mbit"):
        assert {name[:3] for name in it.links()} == set(OURS)
        yield it
    it.netplug.cli("dns", "host", "off")


def test_networkmanager_manages_none_of_our_links(populated: Populated) -> None:
    host, before = populated.host, populated.links()
    populated.give("networkmanager", "/usr/lib/NetworkManager/conf.d")
    # As administrators do who want all links managed.
    host.run(["sh", "-ec", "mkdir -p /etc/NetworkManager/conf.d; cat > /etc/NetworkManager/conf.d/10-all.conf"],
             stdin="[device]\nmatch-device=*\nmanaged=1\n")  # fmt: skip
    populated.managers.network_manager()

    def states() -> dict[str, str]:
        lines = host.output("nmcli", "-t", "-f", "DEVICE,STATE", "device").splitlines()
        return dict(line.split(":") for line in lines)

    def settled() -> bool:
        return not any(state.startswith("connecting") for name, state in states().items() if name.startswith(OURS))

    wait_until(settled, SETTLE_S, "NetworkManager")
    found = {name: state for name, state in states().items() if name.startswith(OURS)}
    assert found.keys() == before.keys()
    assert set(found.values()) == {"unmanaged"}
    assert any(state != "unmanaged" for state in states().values())
    assert populated.links() == before
    assert populated.netplug.drift() == ""


def test_networkd_manages_none_of_our_links_and_wait_online_does_not_wait(populated: Populated) -> None:
    host, before = populated.host, populated.links()
    host.run(["mkdir", "-p", "/etc/systemd/network"])
    uplink = "[Match]\nName=eth*\n[Network]\nKeepConfiguration=yes\nIPv6AcceptRA=no\n"
    every = "[Match]\nName=*\n[Network]\nDHCP=yes\n"
    for name, text in (("10-uplink", uplink), ("90-all", every)):
        host.run(["sh", "-ec", f"cat > /etc/systemd/network/{name}.network"], stdin=text)
    networkd = populated.managers.networkd()
    online = ["/usr/lib/systemd/systemd-networkd-wait-online", f"--timeout={ONLINE_S}"]
    assert host.run(online, check=False).returncode, "it waits for links of ours without our file"
    networkd.stop()
    assert populated.netplug.drift(), "it takes hold of our links, and takes ports from our bridge, without our file"
    populated.give("networkd", "/usr/lib/systemd/network")
    populated.managers.networkd()
    host.run(["/usr/lib/systemd/systemd-networkd-wait-online", f"--timeout={SETTLE_S}"])
    states = {
        line.split()[1]: line.split()[4] for line in host.output("networkctl", "list", "--no-legend").splitlines()
    }
    assert {states[name] for name in before} == {"unmanaged"}
    assert "configured" in states.values()
    wait_until(lambda: not populated.netplug.drift(), SETTLE_S, "all to be repaired")
    assert populated.links() == before
