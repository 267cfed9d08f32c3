"""What the engine tells: once for each change, with who asked and why."""

from collections.abc import AsyncIterator

import pytest
from engine_host import END, NET, Host, tcp

from netplug.drivers.steps import Veth
from netplug.engine.happenings import Happening, Kind, because
from netplug.engine.network_updates import NetworkChange
from netplug.engine.quarantine import unusable
from netplug.engine.records import Description, FrontEnd
from netplug.errors import NetplugError
from netplug.tasks.request import current


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    yield host
    await host.close()


def listen(host: Host) -> list[Happening]:
    told: list[Happening] = []
    host.engine.happenings.watchers.append(told.append)
    return told


def kinds(told: list[Happening]) -> list[str]:
    return [str(it.kind) for it in told]


async def test_a_container_s_life_is_told_step_by_step(host: Host) -> None:
    told = listen(host)
    await host.docker_network(name="blue")
    await host.docker_endpoint(ports=(tcp(8080),))
    await host.join()
    await host.publish()
    await host.engine.endpoints.describe(NET, END, Description("c" * 64, "web", details=True))
    await host.engine.publishing.unpublish(NET, END)
    await host.engine.endpoints.leave(NET, END)
    await host.engine.endpoints.delete(NET, END)
    await host.engine.networks.delete(NET, by=FrontEnd.DOCKER)
    assert [(str(it.kind), it.what) for it in told] == [
        ("network.created", "bridge 10.1.0.0/24"),
        ("endpoint.created", "10.1.0.2"),
        ("ports.published", "0.0.0.0:8080->80/tcp"),
        ("endpoint.updated", "is called web"),
        ("ports.unpublished", "0.0.0.0:8080->80/tcp"),
        ("endpoint.updated", "left its sandbox"),
        ("endpoint.removed", "10.1.0.2"),
        ("network.removed", ""),
    ]
    assert {it.network_name for it in told} == {"blue"}
    assert {it.by for it in told} == {"netplug"}
    last = told[-2]
    assert (last.object, last.name, last.endpoint, last.container) == ("endpoint web", "web", END, "c" * 64)


async def test_a_start_tells_nothing_of_what_it_loads(host: Host) -> None:
    await host.cli_network("10.1.0.0/24", "fd00:1::/64")
    await host.attach(ports=(tcp(8080),))
    await host.kernel.close()
    host.live()
    told = listen(host)
    await host.reconciler.start()
    assert kinds(told) == []


async def test_what_a_start_repairs_is_one_event(host: Host) -> None:
    await host.cli_network()
    record = await host.attach()
    (link,) = (step for step in record.plan if isinstance(step, Veth))
    host.kernel.lose(link.key)
    await host.kernel.close()
    host.live()
    told = listen(host)
    await host.reconciler.start()
    (it,) = told
    assert (it.kind, it.object, it.by) == (Kind.DRIFT_HEALED, "kernel", "netplug")
    assert "missing" in it.what


async def test_a_record_that_is_written_again_is_not_told(host: Host) -> None:
    record = await host.cli_network()
    told = listen(host)
    await host.engine.registry.save(record)
    assert told == []
    await host.engine.network_updates.update("blue", NetworkChange(options={"icc": "false"}))
    assert [(str(it.kind), it.what) for it in told] == [("network.updated", "icc false")]


async def test_a_network_that_follows_the_host_is_told(host: Host) -> None:
    await host.see(mtu=1500, uplink="eth0")
    await host.cli_network()
    told = listen(host)
    await host.see(mtu=1400)
    await host.reconciler._follow_host()
    (it,) = told
    assert (it.kind, it.object, it.what) == (Kind.NETWORK_UPDATED, "network blue", "1 object in the kernel changed")


async def test_a_request_gives_its_id_its_asker_and_its_verb(host: Host) -> None:
    told = listen(host)
    with host.engine.requests.answering("docker", "NetworkDriver.CreateNetwork") as request:
        assert current() is request
        await host.docker_network(name="blue")
    assert [(it.by, it.request, it.cause) for it in told] == [("docker", request.id, "NetworkDriver.CreateNetwork")]
    assert current().id == ""


async def test_a_refusal_is_told_with_the_reason_and_counted(host: Host) -> None:
    told = listen(host)
    with host.engine.requests.answering("cli", "POST /v1/networks") as request:
        request.label = "POST /v1/networks"
        request.fail("exists", "network 'blue' exists already")
        request.fail("internal", "what follows from it does not count")
    (it,) = told
    assert (it.kind, it.object, it.what) == (Kind.REQUEST_REFUSED, "request POST /v1/networks", request.failure[1])  # type: ignore[index]
    assert list(host.engine.requests.seen) == [("cli", "POST /v1/networks", "exists")]
    assert sum(host.engine.requests.seen["cli", "POST /v1/networks", "exists"].buckets) == 1
    with host.engine.requests.answering("cli", "GET /v1/networks/nothing") as request:
        request.fail("not_found", "there is no network 'nothing'")
    assert told == [it]


async def test_a_heal_is_told_and_what_cannot_be_healed_once_until_it_is_over(host: Host) -> None:
    await host.cli_network()
    record = await host.attach()
    told = listen(host)
    (link,) = (step for step in record.plan if isinstance(step, Veth))
    host.kernel.lose(link.key)
    with because("a test took it away"):
        assert await host.reconciler.repair()
    assert {(str(it.kind), it.cause) for it in told} == {("drift.healed", "a test took it away")}
    assert any(link.key in it.object for it in told)
    told.clear()
    host.kernel.lose(link.key)
    host.kernel.fail_at(link.key)
    await host.reconciler.repair()
    await host.reconciler.repair()
    assert "drift.found" in kinds(told)
    assert len([it for it in told if it.kind is Kind.DRIFT_FOUND and link.key in it.object]) == 1
    assert host.engine.drifts.left


async def test_a_fault_is_told_at_its_begin_and_its_end(host: Host) -> None:
    told = listen(host)
    host.engine.supervisor._failed("dns", NetplugError("unavailable", "no"))
    host.engine.supervisor._failed("dns", NetplugError("unavailable", "no"))
    host.engine.supervisor._succeeded("dns")
    assert [(str(it.kind), it.what) for it in told] == [("fault.found", "fails: no"), ("fault.over", "fails: no")]


async def test_a_record_that_cannot_be_used_is_told_until_it_is_gone(host: Host) -> None:
    told = listen(host)
    host.engine.quarantine.replace("networks/", unusable("networks/0a1b", {}, "another version wrote it"))
    host.engine.quarantine.replace("networks/", {})
    assert kinds(told) == ["quarantine.begun", "quarantine.over"]
    assert "another version wrote it" in told[0].what
