"""Runs jobs: opens all that watches, sends, waits, and puts the report together."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from netplug.kernel.probes import packets
from netplug.kernel.probes.api import Job, Kind, Origin, Post, Reply, Report, Rule, Sighting, What
from netplug.kernel.probes.closing import Opened
from netplug.kernel.probes.errors import ProbeError
from netplug.kernel.probes.kernel_drops import DropWatch
from netplug.kernel.probes.legacy_counters import LegacyCounters
from netplug.kernel.probes.matching import Match, Matcher
from netplug.kernel.probes.packets import Packet
from netplug.kernel.probes.posts import open_posts, read_all
from netplug.kernel.probes.rule_trace import Event, Tracer
from netplug.kernel.probes.sending import Sender, wait

if TYPE_CHECKING:
    from netplug.kernel.probes.injecting import Injector

_BETWEEN_S = 0.01
"""Between two packets of a job."""
_LINGER_S = 0.02
"""How long is watched on when all is answered: the posts of other processors may be behind."""
_MOST = 2000
_FINAL = {What.SYN_ACK, What.RST, What.ECHO_REPLY, What.UDP, What.UNREACHABLE, What.TOO_BIG}


def run(job: Job) -> Report:
    """Send, watch, and return what was seen."""
    if job.origin is None:
        raise ProbeError("the job has no origin to send from")
    opened = Opened()
    try:
        if job.origin.link:
            running = Running(_with_post(job, job.origin), opened)
            injector = _injector(job)
            opened.add(injector)
            running.send(injector)
        else:
            running = Running(job, opened)
            with closing(Sender(job)) as sender:  # at once: the next job may want its ports
                running.send(sender)
        return running.report()
    finally:
        opened.close()


def watch(job: Job, ready: Callable[[], None], end: threading.Event) -> Report:
    """Watch until told to end."""
    opened = Opened()
    try:
        running = Running(job, opened)
        ready()
        while not end.is_set():
            running.collect(0.05)
        running.collect(_LINGER_S)
        return running.report()
    finally:
        opened.close()


def _injector(job: Job) -> "Injector":
    from netplug.kernel.probes.injecting import Injector  # noqa: PLC0415 - takes a while

    return Injector(job)


def _with_post(job: Job, origin: Origin) -> Job:
    """Return the job with a post on the link at which its packets come in, since there is seen what answers."""
    if any((it.netns, it.link) == (origin.netns, origin.link) for it in job.posts):
        return job
    return replace(job, posts=(Post(origin.link, origin.netns, origin.link), *job.posts))


class Running:
    """A job at work."""

    def __init__(self, job: Job, opened: Opened) -> None:
        self._job = job
        self._lacks: list[str] = []
        self._matcher = Matcher(job)
        self._posts = open_posts(job)
        opened.add(*self._posts)
        self._tracers = self._open_tracers(opened)
        self._events: list[Event] = []
        self._drops = self._open_drops(opened)
        self._counters = [LegacyCounters(job.flow.destination.version, it) for it in job.legacy]
        self._began = time.time_ns()
        self._sender: Sender | Injector | None = None
        self._sightings: list[Sighting] = []
        self._replies: list[Reply] = []

    def _open_tracers(self, opened: Opened) -> dict[socket.socket, Tracer]:
        tracers = {}
        for netns in self._job.traces:
            links = [it.link for it in self._job.posts if it.netns == netns]
            tracer = Tracer.open(self._job, netns, links)
            opened.add(tracer)
            tracers[tracer.netlink.sock] = tracer
        return tracers

    def _open_drops(self, opened: Opened) -> DropWatch | None:
        if not self._job.drops:
            return None
        try:
            watch = DropWatch(self._job)
        except ProbeError as error:
            self._lacks.append(str(error))
            return None
        opened.add(watch)
        return watch

    def send(self, sender: "Sender | Injector") -> None:
        """Send all packets, and watch until all is answered or the time is over."""
        self._sender = sender
        if sender.source:
            self._matcher.note_source(sender.source)
        self._began = time.time_ns()
        for number in range(self._job.repeat):
            sender.send(number)
            self.collect(_BETWEEN_S if number + 1 < self._job.repeat else 0)
        deadline = time.monotonic() + self._job.wait_ms / 1000
        while (left := deadline - time.monotonic()) > 0 and not self._answered():
            self.collect(left, once=True)
        self.collect(_LINGER_S)

    def _answered(self) -> bool:
        if self._sender and not self._sender.sent:
            return True
        answered = {it.number for it in self._replies if it.what in _FINAL}
        return bool(answered) and len(answered) >= self._job.repeat

    def collect(self, seconds: float, *, once: bool = False) -> None:
        """Take what comes for some time. `once`: or until something has come."""
        own = self._sender.sockets if self._sender else []
        by_fd = {sock.fileno(): sock for sock in (*self._posts, *self._tracers, *own)}
        deadline = time.monotonic() + seconds
        while True:
            found = wait(list(by_fd), deadline - time.monotonic())
            for fd in found:
                self._take(by_fd[fd])
            if (once and found) or time.monotonic() >= deadline:
                return

    def _take(self, sock: socket.socket) -> None:
        if post := self._posts.get(sock):
            for frame, incoming, when in read_all(sock):
                packet = packets.read_frame(frame, self._matcher.tunnels)
                match = self._matcher.match(packet) if packet else None
                if packet and match and len(self._sightings) < _MOST:
                    self._sightings.append(self._sighting(post, packet, match, when, incoming=incoming))
                    self._answer_outside(post, packet, match, when, incoming=incoming)
        elif tracer := self._tracers.get(sock):
            self._events += tracer.read()
        elif self._sender:
            for packet, when in self._sender.receive(sock):
                match = self._matcher.match(packet)
                if match and match.back and match.what is not What.ARP_REPLY:
                    self._replies.append(self._reply(packet, match, when))

    def _answer_outside(self, post: Post, packet: Packet, match: Match, when: int, *, incoming: bool) -> None:
        """Take note of an answer that leaves by the link at which the packets came in."""
        sender, origin = self._sender, self._job.origin
        if sender is None or isinstance(sender, Sender) or origin is None or incoming or not match.back or packet.vni:
            return
        if (post.netns, post.link) == (origin.netns, origin.link) and match.what is not What.ARP_REPLY:
            self._replies.append(self._reply(packet, match, when))
            if match.what is What.SYN_ACK:
                sender.reset(match.number)

    def _sighting(self, post: Post, packet: Packet, match: Match, when: int, *, incoming: bool) -> Sighting:
        outer = packet.outer
        return Sighting(
            post.name,
            match.what,
            incoming,
            match.back,
            self._ms(when),
            packet.source,
            packet.destination,
            packet.source_port,
            packet.port,
            match.number,
            packet.vni,
            outer.source if outer else None,
            outer.destination if outer else None,
            match.code,
            match.mtu,
            packet.mac,
            packet.size,
        )

    def _reply(self, packet: Packet, match: Match, when: int) -> Reply:
        text = ""
        if self._job.flow.kind is Kind.DNS and match.what is What.UDP:
            text = packets.answer_text(packet.payload)
        return Reply(match.what, packet.source, self._ms(when), match.mtu, match.code, text, match.number)

    def _ms(self, when: int) -> float:
        return round((when - self._began) / 1e6, 3) if when else 0.0

    def _rules(self) -> tuple[Rule, ...]:
        moved = [it for counters in self._counters for it in counters.moved(self._seen())]
        if not self._events:
            return tuple(moved)
        from netplug.kernel.probes.rule_texts import rules_of  # noqa: PLC0415 - takes a while

        return (*rules_of(self._events, self._matcher), *moved)

    def _seen(self) -> int:
        """Return how many packets met rules; of a watch, how many came."""
        if self._sender:
            return self._sender.tried
        if not self._posts:
            return self._job.repeat
        return len({it.number for it in self._sightings if not it.back and it.what is not What.ARP_REQUEST})

    def report(self) -> Report:
        """Return what was seen."""
        sender = self._sender
        rules = self._rules()
        watched: list[Tracer | LegacyCounters] = [*self._tracers.values(), *self._counters]
        lacks = [*self._lacks, *(lack for it in watched for lack in it.lacks)]
        named = any(it.drops for it in rules)
        return Report(
            sent=sender.sent if sender else 0,
            refused=sender.refused if sender else "",
            source=sender.source if sender else None,
            sightings=tuple(sorted(self._sightings, key=lambda it: it.ms)),
            replies=tuple(sorted(self._replies, key=lambda it: (it.number, it.what not in _FINAL, it.ms))),
            drops=self._drops.drops(self._matcher, named=named) if self._drops else (),
            rules=rules,
            lacks=tuple(dict.fromkeys(lacks)),
        )
