"""Networks and endpoints of every kind, and the records of them that the former release wrote. For tests.

`build` runs with the former release too. `fixtures/records/former.json` was written so, from a clone of it in $FORMER:

    PYTHONPATH=$FORMER:$FORMER/tests python tests/former_state.py tests/fixtures/records/former.json
"""

import asyncio
import json
import sys
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from engine_host import END, NEXT, OTHER, SANDBOX, Host, tcp, udp

from netplug.drivers.api import HostFacts, StaticRoute
from netplug.engine.records import AttachSpec, FrontEnd, NetworkSpec, SubnetSpec

RECORDS = Path(__file__).parent / "fixtures" / "records" / "former.json"
LAN, PORTED, OVERLAY = "d4" * 32, "e5" * 32, "f6" * 32


def furnish(host: Host) -> None:
    """Give a host what its records speak of: an uplink, a tunnel address, and sandboxes."""
    host.kernel.foreign.links["eth0"] = ""
    host.kernel.foreign.addresses.add(("eth0", ip_interface("192.0.2.1/24")))
    host.kernel.foreign.facts = HostFacts(mtu=1500, uplink="eth0")
    host.kernel.inhabitants.add(SANDBOX)
    host.vtep = ip_address("192.0.2.1")


async def build(host: Host) -> None:
    """Build networks of each mode, with endpoints of each front end; the host was furnished before it booted."""
    await host.docker_network()
    await host.docker_endpoint(name="web")
    await host.join()
    await host.publish(END, tcp(8080), tcp(9000, 9000), tcp(9001, 9001), udp(53))
    await host.cli_network("10.2.0.0/24", "fd00:2::/64", ident=OTHER, name="red", rate="1gbit", sticky="7d")
    ports = (tcp(7070, 70), tcp(7071, 71, "192.0.2.1"))
    await host.attach("ns1", network=OTHER, name="bare", aliases=("b",), ports=ports, options={"rate": "10mbit"})
    await host.attach("ns1", network=OTHER, ifname="eth1", mac="02:00:00:00:00:07")
    pods = SubnetSpec(ip_network("10.3.0.0/24"))
    await host.engine.networks.create(NetworkSpec(NEXT, "pods", {"icc": "false"}, (pods,), front_end=FrontEnd.CNI))
    routes = (StaticRoute(ip_network("0.0.0.0/0"), ip_address("10.3.0.1")), StaticRoute(ip_network("10.99.0.0/16")))
    pod = AttachSpec(
        NEXT, "ns2", container="c2", front_end=FrontEnd.CNI, routes=routes, hairpin=True, ports=(tcp(6060),)
    )
    await host.engine.endpoints.attach(pod)
    await host.cli_network("192.168.7.0/24", ident=LAN, name="lan", mode="macvlan", parent="eth0")
    await host.attach("ns3", network=LAN)
    await host.cli_network("10.5.0.0/24", ident=PORTED, name="ported", mode="host")
    await host.attach("ns4", network=PORTED)
    await host.cli_network("10.6.0.0/24", ident=OVERLAY, name="wide", mode="overlay", vni="20001")
    await host.attach("ns5", network=OVERLAY, name="far")


async def booted() -> Host:
    """Return a furnished host without networks."""
    host = await Host.boot()
    furnish(host)
    await host.reboot()
    return host


async def records(host: Host) -> dict[str, Any]:
    """Return all records of a host, by key."""
    return {record.key: dict(record.value) for record in (await host.store.range(""))[0]}


async def _text() -> str:
    host = await booted()
    await build(host)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in (await records(host)).items()]
    await host.close()
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(asyncio.run(_text()))
