"""The host itself as a client: it may ask for the names of all networks, below the domain.

Every program of the host may ask, whoever's it is. Containers may not: the sockets take only what the host sends.
"""

import socket
from collections.abc import Sequence

from netplug.dns.domain_view import DomainView
from netplug.dns.forward_rules import NO_FORWARDING, Rule, Rules, Server
from netplug.dns.server import Counts, Forward, Listener
from netplug.dns.tcp import Connections
from netplug.dns.wire import ROOT
from netplug.dns.zone import Zones
from netplug.drivers.steps import Resolver
from netplug.engine.host_link import ADDRESSES, PORT
from netplug.names.serving import Serving

_NETWORK = "host"
"""What the limits are counted for."""


class HostClient:
    """Answers the host. Other names go to its other resolvers if it asks here first, as resolv.conf(5) wants it.

    `counts`: numbers of questions.
    """

    def __init__(self, zones: Zones, forward: Forward, connections: Connections) -> None:
        self.counts = Counts()
        self._zones = zones
        self._forward = forward
        self._connections = connections
        self._listeners: dict[Listener, Resolver] = {}
        self._rules = NO_FORWARDING

    def serve(self, step: Resolver, udp: socket.socket, tcp: socket.socket) -> Serving:
        """Answer on a pair of sockets."""
        listener = Listener(udp, tcp, _NETWORK, self._forward, counts=self.counts, connections=self._connections)
        self._listeners[listener] = step
        self.refresh()
        return Serving(listener, self._listeners.__delitem__)

    def use_resolvers(self, servers: Sequence[Server]) -> None:
        """Take the host's resolvers, as resolv.conf has them: ours is among them, and left out."""
        self._rules = Rules.of((Rule(ROOT, tuple(servers)),), (), avoid=ADDRESSES)
        self.refresh()

    def refresh(self) -> None:
        """Follow the networks: a view is of those that there are."""
        for listener, step in self._listeners.items():
            view = DomainView(self._zones, tuple(self._zones.networks.values()))
            if step.port == PORT:
                view.rules, view.forwarded, view.upstream_cache = self._rules, (ROOT,), self._rules.cache
            listener.admit_all(view)
