"""Many networks, endpoints and published ports on a host, to measure others beside them."""

from harness import Host, Netplug

FIRST_PORT = 20_000


def lay(host: Host, netplug: Netplug, networks: int, endpoints: int) -> None:
    """Create networks, and bare namespaces on them in turn, each with a published port of TCP."""
    client = netplug.client
    for number in range(networks):
        subnet = f"10.{128 + number // 256}.{number % 256}.0/24"
        client.post("networks", body={"name": f"ballast{number}", "subnets": [{"subnet": subnet}]})
    names = [f"ballast{number}" for number in range(endpoints)]
    host.run(["ip", "-batch", "-"], stdin="".join(f"netns add {name}\n" for name in names), timeout_s=300)
    for number, name in enumerate(names):
        ports = [{"port": 80, "host_port": FIRST_PORT + number}]
        client.post("attach", body={"network": f"ballast{number % networks}", "netns": name, "ports": ports})
