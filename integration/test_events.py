"""One `docker run`, followed from Docker's requests to the kernel's answers by the ids in log and events."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import BIN_DIR, Dockerd, Host, Netplug, Runtime, container, docker_network, namespace, wait_until

PLUGIN = {"type": "pynet", "ipam": {"type": "netplug-ipam", "ranges": [[{"subnet": "10.91.0.0/24"}]]}}


@pytest.fixture(scope="module")
def netplug(host: Host, dockerd: Dockerd) -> Iterator[Netplug]:
    it = Netplug(host, "--log-format", "json", "--log-level", "debug")
    with docker_network(dockerd) as net, container(dockerd, "--network", net, "-p", "1"):
        pass  # what is made once and kept
    yield it
    it.stop()


def events(netplug: Netplug, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in netplug.cli("events", "--json", *options).splitlines()]


def logged(netplug: Netplug, request: str) -> list[dict[str, Any]]:
    """Return the lines of the log of one request."""
    lines = [json.loads(line) for line in netplug.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("request_id") == request]


def test_a_docker_run_is_followed_to_the_kernel(netplug: Netplug, dockerd: Dockerd) -> None:
    with docker_network(dockerd) as net:
        with container(dockerd, "--network", net, "--name", "web", "-p", "8080:80"):
            (endpoint,) = netplug.json("ps", "--network", net)
            wait_until(lambda: [it for it in events(netplug, "--network", net) if "is called web" in it["what"]])
        told = [it for it in events(netplug, "--network", net) if it["kind"] != "endpoint.updated"]
    assert [it["kind"] for it in told if it["endpoint"]] == [
        "endpoint.created", "ports.published", "ports.unpublished", "endpoint.removed",
    ]  # fmt: skip
    created, published = (it for it in told if it["kind"] in {"endpoint.created", "ports.published"})
    assert (created["by"], created["cause"]) == ("docker", "NetworkDriver.CreateEndpoint")
    assert created["endpoint"] == endpoint["id"]
    assert "8080->80/tcp" in published["what"]
    lines = logged(netplug, created["request"])
    seen = [line["event"] for line in lines]
    order = ["intent.begun", "kernel.answered", "plan.applied", "intent.done", "request.answered"]
    assert [event for event in seen if event in order] == order
    by_event = {line["event"]: line for line in lines}
    (link,) = (key for key in by_event["plan.applied"]["steps"] if key.startswith("link/"))
    assert link in by_event["kernel.answered"]["steps"]
    assert by_event["request.answered"]["verb"] == "NetworkDriver.CreateEndpoint"
    assert by_event["request.answered"]["outcome"] == "ok"


def test_a_refusal_of_docker_s_request_is_an_event(netplug: Netplug, dockerd: Dockerd) -> None:
    with pytest.raises(Exception, match="rate"):
        dockerd.docker("network", "create", "-d", "pynet", "-o", "rate=fast", "wrong")
    refused = events(netplug, "--kind", "request.refused")[-1]
    assert refused["by"] == "docker"
    assert "rate" in refused["what"]
    assert refused["request"] in {line["request_id"] for line in logged(netplug, refused["request"])}


def test_a_stream_goes_on_while_things_happen(netplug: Netplug, dockerd: Dockerd) -> None:
    lines = netplug.client.lines("events", "stream", kind="network")
    assert next(lines) == ": netplug"
    with docker_network(dockerd) as net:
        told = [json.loads(line[5:]) for line in (next(lines) for _ in range(4)) if line.startswith("data:")]
    lines.close()
    assert [it["kind"] for it in told] == ["network.created"]
    assert told[0]["by"] == "docker"
    assert told[0]["network_name"] in {net, told[0]["network"][:12]}


def test_commands_without_a_daemon_write_to_the_same_file(new_host: Callable[..., Host]) -> None:
    host = new_host()
    netplug = Netplug(host, "--docker-host", "none")
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
    netplug.stop()
    it = Runtime(host, PLUGIN, version="1.1.0", env={"NETPLUG_STATE_DIR": str(netplug.state_dir)})
    with namespace(host) as netns:
        one = it.add(netns, container="alone")
        it.delete(one)
    netplug.start()
    told = [(it["kind"], it["by"], it["cause"]) for it in events(netplug)]
    assert told == [
        ("daemon.started", "netplug", ""),
        ("daemon.stopped", "netplug", ""),
        ("network.created", "cni", "ADD"),
        ("endpoint.created", "cni", "ADD"),
        ("endpoint.removed", "cni", "DEL"),
        ("daemon.started", "netplug", ""),
    ]
    netplug.cli("network", "rm", it.name)
    netplug.stop()
