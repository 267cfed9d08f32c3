"""Options that netplug knows: those that each network has, and those that a driver may offer.

A driver lists what it takes in `Driver.options`. Their values are fields of `NetworkOptions`; the parser, the error
messages and the README's table come from these declarations. A network that lives can take another value of those
whose `fixed` is empty.
"""

from . import option_values
from .options import Option

_DOCKER = "com.docker.network."

MODE = Option(
    "mode",
    option_values.word,
    "bridge",
    "how the network is built: `bridge`, `host`, `macvlan`, `none`, `overlay` (several hosts), or the mode "
    "of another driver",
    fixed="another driver makes other links",
)
NAME = Option(
    "name",
    option_values.word,
    "learned from Docker",
    "name of the network outside Docker",
    fixed="names and addresses of containers are reserved under it",
)
MTU = Option(
    "mtu",
    option_values.mtu,
    "the uplink's",
    "MTU of the network's links, in bytes",
    aliases=(_DOCKER + "driver.mtu",),
    fixed="",
)
BRIDGE = Option(
    "bridge",
    option_values.link,
    "derived from the network's id",
    "interface name of the bridge; an existing bridge is used and never deleted",
    aliases=(_DOCKER + "bridge.name",),
    fixed="the links of containers are its ports",
)
MASQUERADE = Option(
    "masquerade",
    option_values.boolean,
    "true",
    "source NAT: traffic of containers leaves the host with the host's address",
    aliases=(_DOCKER + "bridge.enable_ip_masquerade",),
    fixed="",
)
ICC = Option(
    "icc",
    option_values.boolean,
    "true",
    "containers of the network may communicate with each other",
    aliases=(_DOCKER + "bridge.enable_icc",),
    fixed="",
)
SPOOFCHK = Option(
    "spoofchk",
    option_values.boolean,
    "true",
    "anti-spoofing: a container sends only with its own MAC and addresses; set `false` for containers that route "
    "for others",
    fixed="",
)
SLAAC = Option(
    "slaac",
    option_values.boolean,
    "false",
    "containers take routes and addresses from router advertisements (SLAAC, RFC 4862); on a bridge this needs "
    "`spoofchk=false`. It does not apply to Docker's containers: set `--sysctl net.ipv6.conf.default.accept_ra=…` "
    "there",
    fixed="a sandbox reads it when its link is made",
)
HOST_BINDING_IPV4 = Option(
    "host_binding_ipv4",
    option_values.ipv4,
    "all addresses",
    "host address for published ports that name none",
    aliases=(_DOCKER + "bridge.host_binding_ipv4",),
    fixed="",
)
IFNAME = Option(
    "ifname",
    option_values.prefix,
    "eth",
    "prefix of interface names in the sandbox",
    aliases=(_DOCKER + "container_iface_prefix",),
    fixed="links in sandboxes have their names",
)
PARENT = Option(
    "parent",
    option_values.link,
    "the uplink",
    "parent link on the host: containers join its segment",
    fixed="the links of containers belong to it",
)
MACVLAN_MODE = Option(
    "macvlan_mode",
    option_values.macvlan_mode,
    "bridge",
    "`bridge`, `vepa` (containers reach each other through the switch), `private` (containers do not reach each "
    "other), `passthru` (one container has the parent to itself)",
    fixed="the links of containers have it",
)
HOST_ACCESS = Option(
    "host_access",
    option_values.boolean,
    "false",
    "the host gets an address in the network, so that host and containers reach each other",
    fixed="the address of the host is taken when the network is created",
)
GW_PRIORITY = Option(
    "gw_priority",
    option_values.priority,
    "0",
    "of the networks of a container, that with the highest number provides the default route; also for one "
    "container; not with Docker, which has `--gw-priority`; see [docs/running.md](docs/running.md#several-networks)",
    endpoint=True,
    fixed="",
)
METRIC = Option(
    "metric",
    option_values.metric,
    "the kernel's",
    "metric of the default route, as with netavark; not with Docker, which makes the routes itself",
    fixed="",
)
RATE = Option(
    "rate",
    option_values.rates,
    "no limit",
    "bandwidth limit: `100mbit` for each direction, or `100mbit/20mbit` for received and sent traffic; also for "
    "one container, by `--driver-opt`",
    endpoint=True,
    fixed="",
)
BURST = Option(
    "burst",
    option_values.bursts,
    "10 ms at the rate, at least 80kb",
    "bytes that may exceed the rate at once, such as `128kb`; also for one container",
    endpoint=True,
    fixed="",
)
VNI = Option(
    "vni",
    option_values.vni,
    "allocated",
    "VXLAN network identifier, the same on all hosts",
    fixed="tunnels of all hosts carry it",
)
VXLAN_PORT = Option(
    "vxlan_port",
    option_values.port,
    "4789",
    "UDP port of the tunnels, the same on all hosts",
    fixed="tunnels of all hosts use it",
)
BUM = Option(
    "bum",
    option_values.boolean,
    "false",
    "broadcast, unknown unicast and multicast frames are copied to every host of the network",
    fixed="",
)
STICKY = Option(
    "sticky",
    option_values.duration,
    "false",
    "a new container with the same name gets the former addresses and MAC back within this time: `30m`, `7d`; "
    "`true` means `24h`; see [docs/docker.md](docs/docker.md#sticky-addresses)",
    fixed="",
)
DNS = Option(
    "dns",
    option_values.switch,
    "on",
    "`off`: netplug does not serve the containers' names and does not answer at port 53 of the gateway; see "
    "[docs/dns.md](docs/dns.md)",
    fixed="",
)
DNS_UPSTREAM = Option(
    "dns_upstream",
    option_values.upstreams,
    "the daemon's",
    "resolvers for external names: `10.0.0.1`, or `corp.example=10.0.0.53` for one domain; separate several with "
    "commas",
    fixed="",
)
TTL = Option(
    "ttl",
    option_values.ttl,
    "5",
    "TTL of the network's DNS records, in seconds",
    fixed="",
)

COMMON = (MODE, NAME, STICKY, DNS, DNS_UPSTREAM, TTL)
"""What the engine does for every network, whatever its driver."""
SHARED = (
    MODE,
    NAME,
    MTU,
    BRIDGE,
    MASQUERADE,
    ICC,
    SPOOFCHK,
    SLAAC,
    HOST_BINDING_IPV4,
    IFNAME,
    PARENT,
    MACVLAN_MODE,
    HOST_ACCESS,
    GW_PRIORITY,
    METRIC,
    RATE,
    BURST,
    VNI,
    VXLAN_PORT,
    BUM,
    STICKY,
    DNS,
    DNS_UPSTREAM,
    TTL,
)
"""All of them, in the order in which users read them."""
