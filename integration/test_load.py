"""Many endpoints, ports and networks on one host, callers that are killed, and a kernel that others keep busy.

Small forms: `bench/load.py` measures the large ones.
"""

import os
import re
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from harness import Host, Netplug, assert_same, namespace, snapshot, wait_until
from harness.answers import answers
from harness.crowd import Crowd, files_of
from harness.killing import calling
from harness.quick import drift, quick_network, quick_spot
from harness.rtnl import rtnl_held, userfaultfd

from netplug.cli import CliError

_HELD_S = 1.5
_CROWD = 60
_BACK_S = 30


@pytest.fixture
def own(new_host: Callable[..., Host]) -> Netplug:
    return Netplug(new_host("load"), "--docker-host", "none")


def _at_rest(netplug: Netplug) -> dict[str, tuple[str, ...]]:
    """Return the host without endpoints: links of former ones go in the background."""
    wait_until(lambda: not [it for it in snapshot(netplug.host, netplug)["links"] if it.startswith("nph")], _BACK_S)
    return snapshot(netplug.host, netplug)


def test_killed_callers_leave_nothing(own: Netplug) -> None:
    """A tenth of the attaches, by CNI, the API and Docker's protocol, are killed in the middle."""
    with calling(own, 9) as callers:
        callers.run(1, killed=0)  # what is made once and kept
        before, files = _at_rest(own), files_of(own)
        done = callers.run(6, killed=0.1)
        assert done.failed == []
        assert done.killed > 2
        assert_same(before, lambda: snapshot(own.host, own), _BACK_S)
        assert drift(own) == []
        wait_until(lambda: files_of(own) <= files, _BACK_S, "descriptors are closed")


def test_other_holder_of_the_rtnetlink_lock_stalls_neither_names_nor_api(own: Netplug) -> None:
    """Requests that need the kernel wait for it; all others, and the name server, do not notice."""
    _need_userfaultfd()
    with (
        quick_network(own, ipv6=False) as net,
        quick_spot(own, net, name="asker") as spot,
        ThreadPoolExecutor(8) as pool,
    ):
        with (
            namespace(own.host) as one,
            namespace(own.host) as two,
            answers(own, spot, spot.gateways[0], "asker") as said,
        ):
            for it in (one, two):
                own.client.post("attach", body={"network": net, "netns": it.name})
            own.client.post("detach", body={"network": net, "netns": two.name})
            with rtnl_held():
                begun = time.monotonic()
                waiting = [
                    pool.submit(own.client.post, "attach", body={"network": net, "netns": two.name}),
                    pool.submit(own.client.post, "detach", body={"network": net, "netns": one.name}),
                    pool.submit(own.client.get, "diff"),
                    pool.submit(own.client.post, "networks", body={"name": "late"}),
                ]
                Event().wait(_HELD_S)
                assert not any(it.done() for it in waiting)
                held_ms = (time.monotonic() - begun) * 1000
                longest = {"dns": said.longest("dns"), "api": said.longest_of_api()}
            for it in waiting:
                it.result(_BACK_S)
        own.client.delete("networks", "late")
        assert max(longest.values()) < held_ms / 2, longest
        assert len(said.took["dns"]) > 10


def _need_userfaultfd() -> None:
    try:
        os.close(userfaultfd())
    except OSError as error:
        pytest.skip(f"needs userfaultfd: {error}")


def test_restart_beside_a_crowd_loses_no_packet(own: Netplug) -> None:
    """A ping every 10 ms, from before the daemon ends until it is ready again."""
    with Crowd(own, networks=2) as crowd:
        _restart_beside(own, crowd)


def _restart_beside(own: Netplug, crowd: Crowd) -> None:
    crowd.grow(_CROWD)
    (address,) = own.client.get("endpoints", network="crowd0")["endpoints"][0]["addresses"]
    inside = ["ip", "netns", "exec", f"box{_CROWD - 2}"]
    ping = own.host.popen([*inside, "busybox", "ping", "-i", "0.01", address.partition("/")[0]], log="ping.log")
    log = own.host.dir / "ping.log"
    wait_until(lambda: log.read_text().count("seq=") > 10, _BACK_S, "answers")
    for end in (own.stop, own.kill):
        end()
        own.start()
    crowd.reconnect()
    assert drift(own) == []
    ping.interrupt()
    sent, received = map(int, re.findall(r"(\d+) packets transmitted, (\d+)", log.read_text())[0])
    assert 100 < sent <= received + 1, "one may be under way at the end"


def test_endpoint_beyond_a_full_bridge_is_refused_before_anything_is_done(own: Netplug) -> None:
    """A Linux bridge takes 1 023 ports: here others fill one of the user's own."""
    host = own.host
    pairs = "".join(f"link add f{n} type veth peer name p{n}\n" for n in range(512))
    ports = "".join(f"link set {side}{n} master full\n" for n in range(512) for side in "fp")
    host.run(["ip", "-batch", "-"], stdin=f"link add full type bridge\n{pairs}", timeout_s=120)
    host.run(["ip", "-force", "-batch", "-"], stdin=ports, check=False, timeout_s=120)
    with quick_network(own, ipv6=False, bridge="full") as net, namespace(host) as late:
        before = _at_rest(own)
        with pytest.raises(CliError, match=r"bridge 'full' has 1023 ports, the most of a Linux bridge"):
            own.client.post("attach", body={"network": net, "netns": late.name})
        assert_same(before, lambda: snapshot(host, own))
        host.run(["ip", "link", "set", "f0", "nomaster"])
        own.client.post("attach", body={"network": net, "netns": late.name})


def test_ports_for_voice_are_published_or_refused_with_the_setting(own: Netplug) -> None:
    """49152-65535/udp, as telephony has them: a descriptor each, and none is left."""
    ports = [{"proto": "udp", "port": it, "host_address": "0.0.0.0", "host_port": it} for it in range(49_152, 65_536)]
    with quick_network(own, ipv6=False) as net, namespace(own.host) as one:
        body = {"network": net, "netns": one.name}
        own.client.post("attach", body=body | {"ports": ports[:1]})  # what is opened once and kept
        own.client.post("detach", body=body)
        before, files = _at_rest(own), files_of(own)
        body |= {"ports": ports}
        if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 17_000:
            with pytest.raises(CliError, match=r"16384 ports needs 16384 open files, .* \(raise LimitNOFILE"):
                own.client.post("attach", body=body)
        else:
            own.client.post("attach", body=body)
            assert len(ports) <= files_of(own) - files < len(ports) + 10
            del body["ports"]
            own.client.post("detach", body=body)
        assert_same(before, lambda: snapshot(own.host, own), _BACK_S)
        wait_until(lambda: files_of(own) <= files, _BACK_S, "descriptors are closed")
