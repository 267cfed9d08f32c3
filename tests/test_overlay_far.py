"""The part of a host in the trace of another one: what it watches, how long, and what it says instead."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest
from clustered import Hosts, address_of, attach, create, detach, has, reaches
from etcd_server import Member, needs_etcd
from living import Living, until

from netplug.cluster.cluster import Cluster
from netplug.cluster.questions import Reason, Unanswered
from netplug.daemon.life import Daemon
from netplug.drivers.naming import mark, sandbox_side, vxlan_name
from netplug.drivers.tunnel import Fdb
from netplug.errors import NetplugError
from netplug.insight.overlay.far import MOST_AT_ONCE, FarSide
from netplug.insight.overlay.far_watch import FarWatch, FarWatches
from netplug.insight.overlay.messages import REPORT, WATCH, Request, Watching
from netplug.kernel.probes.api import (
    Facts,
    Flow,
    Job,
    LinkState,
    Look,
    Neighbours,
    Report,
    RouteFound,
    Sighting,
    What,
)
from netplug.kernel.probes.codec import from_json, to_json

pytestmark = needs_etcd


@dataclass
class Written:
    """`Probes` that see what a test has written down. `open`: how many of them run; `jobs`: what was watched."""

    links: dict[str, tuple[LinkState, ...]] = field(default_factory=dict)
    failure: str = ""
    open: int = 0
    jobs: list[Job] = field(default_factory=list)

    @asynccontextmanager
    async def start(self) -> AsyncIterator["Written"]:
        if self.failure:
            raise NetplugError("unavailable", self.failure)
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1

    async def look(self, look: Look) -> Facts:
        lookups = tuple(RouteFound(to, source, "eth0") for to, source in look.routes)
        return Facts(look.netns, self.links.get(look.netns, ()), lookups=lookups)

    @asynccontextmanager
    async def watch(self, job: Job) -> AsyncIterator["Written"]:
        self.jobs.append(job)
        yield self

    async def report(self) -> Report:
        flow = self.jobs[-1].flow
        assert flow.source
        seen = (
            Sighting(it.name, What.SYN, True, False, 1.0, flow.source, flow.destination) for it in self.jobs[-1].posts
        )
        return Report(sightings=tuple(seen))

    async def run(self, job: Job) -> Report:
        raise NotImplementedError

    async def who_has(self, *_: Any) -> Neighbours:
        raise NotImplementedError


def cluster(daemon: Daemon) -> Cluster:
    assert daemon.cluster
    return daemon.cluster


@dataclass
class Scene:
    """Two hosts, an endpoint on each; host 2 watches with `probes`."""

    one: Living
    two: Living
    probes: Written
    request: Request

    def ask(self, kind: str, body: Any) -> Any:
        return self.one.wait_for(lambda daemon: cluster(daemon).questions.ask("host-2", kind, body, 5))

    def watch(self, **changes: Any) -> Watching:
        return from_json(Watching, self.ask(WATCH, to_json(replace(self.request, **changes))))

    def refusal(self, kind: str, body: Any) -> str:
        with pytest.raises(Unanswered) as caught:
            self.ask(kind, body)
        assert caught.value.reason is Reason.REFUSED
        return str(caught.value)


@pytest.fixture
def scene(hosts: Hosts) -> Iterator[Scene]:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    here, there = attach(one, name="web"), attach(two, name="db")
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    reaches(two, f"{address_of(here)} at 192.0.2.1")
    probes, work = Written(), list[asyncio.Future[None]]()

    def prepare(daemon: Daemon) -> tuple[str, str]:
        engine, network = daemon._parts.engine, next(iter(cluster(daemon).mirroring.shared()))
        (record,) = engine.registry.endpoints()
        link = LinkState("eth7", 2, True, True, 1450, there["mac"], altnames=(mark(sandbox_side(record.endpoint.id)),))
        assert record.host_link
        names = ("eth0", vxlan_name(record.endpoint.network), record.host_link.name, "nobody")
        probes.links[record.sandbox] = (link,)
        own = {"eth0": (ip_interface("192.0.2.2/24"),)}
        probes.links[""] = tuple(LinkState(it, 9, True, True, 1500, "", addresses=own.get(it, ())) for it in names)
        work.append(asyncio.ensure_future(FarSide(engine, cluster(daemon), probes).run()))
        return network, record.endpoint.id

    network, ident = two.do_and_get(prepare)
    source, destination = ip_address(address_of(here)), ip_address(address_of(there))
    flow = Flow(destination, port=80, source=source)
    request = Request(network, ident, here["endpoint"], here["mac"], source, ip_address("192.0.2.1"), flow, 77)
    yield Scene(one, two, probes, request)
    if two.alive:
        two.do(lambda _: work[0].cancel())


def test_host_watches_at_all_links_of_the_path_and_reports(scene: Scene) -> None:
    watching = scene.watch()
    assert [(it.name, it.link) for it in watching.seats] == [
        ("far-uplink", "eth0"),
        ("far-tunnel", scene.probes.links[""][1].name),
        ("far-port", scene.probes.links[""][2].name),
        ("far-end", "eth7"),
    ]
    tunnel = watching.tunnel
    assert tunnel
    assert (str(tunnel.vtep), str(tunnel.other), tunnel.uplink) == ("192.0.2.2", "192.0.2.1", "eth0")
    assert (watching.called, watching.absent, tunnel.faults) == ("db", "", ())
    assert [it.name for it in watching.host.links] == ["eth0", *(it.name for it in scene.probes.links[""][1:3])]
    (job,) = scene.probes.jobs
    assert (job.mark, job.origin, job.posts[3].netns) == (77, None, watching.netns)
    report = from_json(Report, scene.ask(REPORT, {"watch": watching.watch}))
    assert [it.post for it in report.sightings] == ["far-uplink", "far-tunnel", "far-port", "far-end"]
    until(lambda: not scene.probes.open, "the process has ended")
    assert "the watch has ended already" in scene.refusal(REPORT, {"watch": watching.watch})


def test_watch_that_nobody_asks_about_ends(scene: Scene) -> None:
    watching = scene.watch(seconds=0.2)
    until(lambda: not scene.probes.open, "the process has ended")
    assert "the watch has ended already" in scene.refusal(REPORT, {"watch": watching.watch})


def test_only_some_are_watched_at_once(scene: Scene) -> None:
    found = [scene.watch(mark=number) for number in range(MOST_AT_ONCE)]
    assert "traces are watched already" in scene.refusal(WATCH, to_json(scene.request))
    scene.ask(REPORT, {"watch": found[0].watch})
    until(lambda: scene.probes.open < MOST_AT_ONCE, "one has ended")
    assert scene.watch().watch


def test_endpoint_that_is_not_there_is_told(scene: Scene) -> None:
    assert scene.watch(endpoint="f" * 64).absent == "network blue has no such endpoint there"
    detach(scene.two)
    assert scene.watch().absent
    assert "there is no network" in scene.refusal(WATCH, to_json(replace(scene.request, network="f" * 64)))
    assert scene.probes.open == 0


def test_process_that_cannot_be_started_is_told_and_the_next_one_tried(scene: Scene) -> None:
    scene.probes.failure = "no process can be started for probes: out of memory"
    assert "host host-2: no process can be started for probes" in scene.refusal(WATCH, to_json(scene.request))
    scene.probes.failure = ""
    assert scene.watch().watch


@pytest.mark.parametrize("body", [{}, {"network": 1}, {"network": "a", "flow": "tcp"}, {"seats": []}])
def test_nonsense_is_refused(scene: Scene, body: Any) -> None:
    assert "the request to watch cannot be read" in scene.refusal(WATCH, body)


def test_entry_that_another_program_took_away_is_told(scene: Scene) -> None:
    """The daemon heals it later."""
    state = scene.two.kernel._world.state
    (key,) = [key for key, step in state.items() if isinstance(step, Fdb)]
    state.pop(key)
    tunnel = scene.watch().tunnel
    assert tunnel
    assert [(it.kind, it.where, it.words) for it in tunnel.faults] == [("fdb", key, "missing")]


def test_host_that_sends_elsewhere_than_where_the_other_is_says_so(scene: Scene, etcd: Member) -> None:
    assert etcd.records("cluster/hosts/")
    tunnel = scene.watch(vtep=ip_address("192.0.2.77")).tunnel
    assert tunnel
    assert [it.kind for it in tunnel.faults] == ["unknown"]
    assert "frames go to VTEP 192.0.2.1" in tunnel.faults[0].words


def test_daemon_that_ends_meanwhile_gives_no_report(scene: Scene) -> None:
    async def begin(daemon: Daemon) -> FarWatch:
        return await FarWatches(cluster(daemon)).begin(host, "host-2", scene.request)

    async def report(daemon: Daemon) -> Reason:
        try:
            await FarWatches(cluster(daemon)).report(host, watch)
        except Unanswered as exc:
            return exc.reason
        raise AssertionError("there is a report")

    host = scene.two.do_and_get(lambda daemon: cluster(daemon).me)
    watch = scene.one.wait_for(begin)
    assert watch.open
    scene.two.stop()
    assert scene.one.wait_for(report) is Reason.NOT_ALIVE
    assert scene.one.wait_for(begin).silence


def test_link_with_the_vtep_that_is_down_is_told(scene: Scene) -> None:
    eth0, *others = scene.probes.links[""]
    scene.probes.links[""] = (replace(eth0, up=False), *others)
    tunnel = scene.watch().tunnel
    assert tunnel
    assert [(it.kind, it.where) for it in tunnel.faults] == [("underlay", "eth0")]
    scene.probes.links[""] = (replace(eth0, addresses=()), *others)
    tunnel = scene.watch().tunnel
    assert tunnel
    assert [(it.kind, it.where) for it in tunnel.faults] == [("underlay", "VTEP 192.0.2.2")]
