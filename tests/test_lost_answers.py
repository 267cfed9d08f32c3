"""The process died after it had done what was asked for, and before it had said so; the caller asks again."""

from ipaddress import ip_address

import pytest
from engine_host import Act, Host, set_up, tcp

from netplug.engine.records import AttachSpec
from netplug.errors import NetplugError
from netplug.kernel.fake.kernel import FakeKernel

pytestmark = pytest.mark.usefixtures("quiet")


async def docker_network(host: Host) -> object:
    return await host.docker_network()


async def docker_endpoint(host: Host) -> object:
    return await host.docker_endpoint(ports=(tcp(8080),))


async def none_network(host: Host) -> object:
    return await host.docker_network(mode="none")


async def none_endpoint(host: Host) -> object:
    """Docker gives an address, a MAC and ports all the same."""
    return await host.docker_endpoint(ports=(tcp(8080),), mac="02:00:00:00:00:09")


async def cli_network(host: Host) -> object:
    return await host.cli_network("10.1.0.0/24", "fd00:1::/64", sticky="true")


async def attach(host: Host) -> object:
    return await host.attach("ns1", name="web", ports=(tcp(8080),))


ASKED: dict[str, tuple[tuple[Act, ...], Act]] = {
    "network of Docker's": ((), docker_network),
    "endpoint of Docker's": ((docker_network,), docker_endpoint),
    "endpoint without an address": ((none_network,), none_endpoint),
    "network": ((), cli_network),
    "attachment": ((cli_network,), attach),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
async def test_request_whose_answer_was_lost_can_be_repeated_once(asked: tuple[tuple[Act, ...], Act]) -> None:
    given, act = asked
    host = await set_up(FakeKernel(), (*given, act))
    with pytest.raises(NetplugError, match="already"):
        await act(host)  # it was answered
    await host.reboot()
    before = await host.state()
    await act(host)
    assert await host.state() == before
    with pytest.raises(NetplugError, match="already"):
        await act(host)
    assert await host.state() == before
    await host.check()
    await host.close()


@pytest.mark.parametrize("delete", ["endpoint", "network"])
async def test_what_was_deleted_is_made_anew(delete: str) -> None:
    host = await set_up(FakeKernel(), (cli_network, attach))
    await host.reboot()
    (network,) = host.engine.registry.networks()
    await host.engine.endpoints.detach(network.network.id, "ns1", "eth0")
    if delete == "network":
        await host.engine.networks.delete_for_user(network.network.id, _nobody_knows)
        await cli_network(host)
    await attach(host)
    with pytest.raises(NetplugError, match="already"):
        await attach(host)
    await host.close()


async def test_refusal_names_the_command_for_a_network_that_docker_does_not_know() -> None:
    host = await set_up(FakeKernel(), (docker_network,))
    (lost,) = host.engine.registry.networks()
    name = lost.network.name
    words = f"choose another --subnet, or docker network rm {name}, or if not found netplug network rm {name}"
    with pytest.raises(NetplugError, match="overlaps") as caught:
        await host.docker_network("b2" * 32)
    assert caught.value.hint == words
    await host.engine.networks.delete_for_user(name, _docker_does_not)
    await host.docker_network("b2" * 32)
    await host.close()


async def _docker_does_not(network_id: str) -> bool:
    """Docker does not know the network."""
    return False


async def _nobody_knows(network_id: str) -> None:
    """Docker does not run."""


OTHERWISE = {
    "another address": AttachSpec("blue", "ns1", name="web", addresses=(ip_address("10.1.0.77"),)),
    "another port": AttachSpec("blue", "ns1", name="web", ports=(tcp(9090, 90),)),
    "another name": AttachSpec("blue", "ns1", name="db"),
}


@pytest.mark.parametrize("spec", OTHERWISE.values(), ids=OTHERWISE)
async def test_another_request_is_refused_as_ever(spec: AttachSpec) -> None:
    host = await set_up(FakeKernel(), (cli_network, attach))
    await host.reboot()
    before = await host.state()
    with pytest.raises(NetplugError, match="and differs"):
        await host.engine.endpoints.attach(spec)
    assert await host.state() == before
    await host.close()
