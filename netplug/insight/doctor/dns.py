"""Checks of name servers: who else has the ports, and whether the upstreams answer."""

import asyncio
import os
import secrets
import socket
from collections.abc import Iterable
from functools import partial

from netplug.dns.forward_rules import Server, resolv_conf
from netplug.dns.wire import ROOT
from netplug.drivers.firewall import RESOLVER_PORT
from netplug.drivers.steps import Proto
from netplug.insight.doctor.findings import Finding, failure, note, ok, warning
from netplug.insight.doctor.subject import HostSubject
from netplug.tasks.apart import apart

_PORT = 53
_ANSWER_S = 0.8
_TRIES = 2
_HEADER_BYTES = 12
_ANYWHERE = frozenset({"0.0.0.0", "::"})


async def ports(host: HostSubject) -> Iterable[Finding]:
    """Find programs that have the ports of name servers at the gateways."""
    gateways = _gateways(host)
    if not gateways:
        return []
    found = []
    me = f"process {os.getpid()} ("
    for proto, port in ((proto, port) for proto in (Proto.UDP, Proto.TCP) for port in (_PORT, RESOLVER_PORT)):
        for holder in await apart(partial(host.kernel.inspection.holders, proto, port)):
            who, where = holder.process or "a process", f"{proto} port {port} of {holder.address}"
            if who.startswith(me) or "netplug" in who:
                continue
            if port == RESOLVER_PORT and holder.address in {*gateways, *_ANYWHERE}:
                mend = f"stop it, or let it use another port than {RESOLVER_PORT}"
                found.append(failure(f"{who} has {where}, where netplug answers names of containers", mend))
            elif port == _PORT and holder.address in gateways:
                net = gateways[holder.address]
                words = f"{who} has {where}, and gets no question: those of network {net} go to netplug"
                mend = f"stop it, or netplug network update {net} -o dns=off"
                found.append(warning(words, mend))
    return found


def _gateways(host: HostSubject) -> dict[str, str]:
    """Return the gateways at which names are answered, with their networks."""
    nets = [net for net in host.of_mode("bridge", "overlay") if net.options.dns]
    return {str(subnet.gateway.ip): net.name for net in nets for subnet in net.subnets if subnet.gateway}


async def upstreams(host: HostSubject) -> Iterable[Finding]:
    """Find name servers to which questions go and that do not answer."""
    rules = host.settings.dns_rules
    servers = [server for rule in rules for server in rule.servers]
    where = "setting dns_upstream"
    if not any(rule.zone == ROOT for rule in rules):
        path = host.root / "etc/resolv.conf"
        servers += resolv_conf(path.read_text(errors="replace") if path.exists() else "")
        where = f"/{path.relative_to(host.root)}"
    if not servers:
        words = f"{where} names no name server: containers resolve names of containers only"
        return [note(words, "netplug serve --dns-upstream ADDRESS")]
    answers = await asyncio.gather(*(apart(partial(_answers, server)) for server in servers))
    silent = [str(server) for server, answered in zip(servers, answers, strict=True) if not answered]
    if not silent:
        return [ok(f"{len(servers)} name server{'s' * (len(servers) > 1)} of {where} answer")]
    words = f"name server {', '.join(silent)} of {where} does not answer"
    mend = f"dig @{silent[0].partition('#')[0]} . NS; correct {where}"
    if len(silent) < len(servers):
        return [note(f"{words}; the others do", mend)]
    return [warning(f"{words}: containers do not resolve external names", mend)]


def _answers(server: Server) -> bool:
    """Return whether a server answers the question for the root's name servers, with whatever. Blocks."""
    family = socket.AF_INET6 if server.address.version == 6 else socket.AF_INET
    ident = secrets.token_bytes(2)
    question = ident + bytes.fromhex("01000001000000000000") + b"\0" + bytes.fromhex("00020001")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_ANSWER_S / _TRIES)
            scope = f"%{server.scope}" if server.scope else ""
            sock.connect((f"{server.address}{scope}", server.port))
            for _ in range(_TRIES):
                sock.send(question)
                try:
                    found = sock.recv(4096)
                except TimeoutError:
                    continue
                if len(found) >= _HEADER_BYTES and found[:2] == ident:
                    return True
    except OSError:
        return False
    return False
