"""Requests out of the schemas of the REST API and of the plugin API, well formed and not, against a real daemon.

Whatever is asked: no failure of ours, no traceback, no line of a library; a refusal says why in one line and has
touched nothing in the kernel, not even for a moment. NETPLUG_HOSTILE_SEED and NETPLUG_HOSTILE_EXAMPLES choose others
than CI's.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from shutil import which
from typing import Any

import pytest
import requests
import schemathesis
from harness import Host, Namespace, Netplug, assert_same, namespace, snapshot
from harness.changes import Changes
from harness.cluster import Etcd
from harness.schemas import EXAMPLES, SEED, Ask, probe, session
from schemathesis.specs.openapi import checks

ADDRESS = "203.0.113.1"
API, PLUGIN = "/run/netplug/netplug.sock", "/run/docker/plugins/pynet.sock"
NET, ENDPOINT = "a" * 64, "e" * 64
MOST_S = 5.0
"""Longest request that is none of `SLOW`: a traced packet is waited for."""
ANSWERS = [checks.content_type_conformance, checks.response_schema_conformance, checks.status_code_conformance]
UGLY = ("Traceback", "Error(", "Exception", "NoneType", "object at", "pydantic", "internal error")
OURS = ("internal", "unreachable")
ASKED_FOR = "this host has no address"
"""The comparison at intervals tells it of a port that was published at an address which the host may get."""


class Scene:
    """A daemon with two networks, a cluster if there is an etcd, an endpoint with a port, and a bare namespace."""

    def __init__(self, netplug: Netplug, web: Namespace, bare: Namespace) -> None:
        self.netplug = netplug
        self.host = netplug.host
        self.web = web
        self.bare = bare

    def mend(self) -> None:
        """Make again what a request has removed."""
        there = {it["name"] for it in self.netplug.client.get("networks")["networks"]}
        for name in SUBNETS.keys() - there:
            self.netplug.client.post("networks", body={"name": name, "subnets": [{"subnet": SUBNETS[name]}]})
        if not self.netplug.client.get("endpoints")["endpoints"]:
            self.web.attach(self.netplug, "blue", "--name", "web", "--publish", "8080:80")

    @contextmanager
    def watched(self) -> Iterator["Watch"]:
        changes = Changes(self.host.netns)
        try:
            yield Watch(self, changes)
        finally:
            changes.close()


class Watch:
    """Judges each answer; `told` counts them by status."""

    def __init__(self, scene: Scene, changes: Changes) -> None:
        self.told: Counter[int] = Counter()
        self._scene = scene
        self.changes = changes
        self._log = scene.netplug.log
        self._read = self._log.stat().st_size

    def ask(self, case: schemathesis.Case, ask: Ask, reason: Callable[[Any], str]) -> schemathesis.Response:
        """Ask, and assert what holds for all answers. `reason`: returns that of a refusal."""
        self.changes.any()
        response = ask()
        self.told[response.status_code] += 1
        self._no_fault_is_logged(case)
        curl = case.as_curl_command()
        assert response.elapsed < MOST_S, curl
        if response.status_code < 400:
            if case.method != "GET":
                self.changes.settle()
            return response
        line = reason(response.json())
        if self.changes.any():  # perhaps by what an earlier request began
            self.changes.settle()
            assert ask().status_code == response.status_code
            assert not self.changes.any(), f"{curl}\nrefused with {line!r}, and the kernel was changed"
        assert 0 < len(line) < 600, (curl, line)
        for word in (*UGLY, "\n"):
            assert word not in line, (curl, line)
        return response

    def _no_fault_is_logged(self, case: schemathesis.Case) -> None:
        with self._log.open("rb") as file:
            file.seek(self._read)
            lines = file.read().decode(errors="replace").splitlines()
            self._read = file.tell()
        logged = "\n".join(it for it in lines if not ("condition.found" in it and ASKED_FOR in it))
        for word in ("Traceback", "[error", "[warning"):
            assert word not in logged, f"{case.as_curl_command()}\n{logged}"
        assert self._scene.netplug.running, case.as_curl_command()


WORDS: dict[str, list[Any]] = {
    "container": [80],
    "dst": ["10.1.0.1", "web:80"],
    "endpoint": ["web"],
    "gateway": ["10.9.0.1"],
    "host": ["one"],
    "ifname": ["eth7"],
    "ip_range": ["10.9.0.0/25"],
    "labels": [{"a": "b"}],
    "mode": ["bridge", "overlay", "macvlan", "none", "host"],
    "name": ["neu", "blue", "web"],
    "network": ["red", "blue"],
    "networks": [["blue"], ["red", "blue"]],
    "options": [{}, {"mtu": "1400"}, {"colour": "blue"}],
    "ref": ["blue", "nowhere"],
    "src": ["web"],
    "subnet": ["10.9.0.0/24", "10.1.0.0/16", "fd00:9::/64"],
    "type": ["A", "PTR"],
}
SUBNETS = {"blue": "10.1.0.0/24", "red": "10.2.0.0/24"}
APART = (
    *("DELETE /v1/hosts/{ref}", "POST /v1/detach", "POST /v1/networks/prune"),
    *("GET /v1/events/stream", "GET /v1/trace", "POST /v1/trace"),
)
"""The first remove what the scene needs, the others last: they have a test of their own."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with made() as it:
        yield it


@contextmanager
def made() -> Iterator[Scene]:
    with ExitStack() as stack:
        host = stack.enter_context(Host("hostile"))
        host.run(["ip", "link", "set", "lo", "up"])
        host.run(["ip", "link", "add", "uplink", "type", "bridge"])
        host.run(["ip", "addr", "add", f"{ADDRESS}/24", "dev", "uplink"])
        host.run(["ip", "link", "set", "uplink", "up"])
        host.run(["ip", "route", "add", "default", "via", "203.0.113.2"])
        store = ("--store", Etcd(host, ADDRESS).url) if which("etcd") else ()
        netplug = Netplug(host, "--docker-host", "none", "--host-name", "one", *store)
        for name, subnet in SUBNETS.items():
            netplug.client.post("networks", body={"name": name, "subnets": [{"subnet": subnet}]})
        web, bare = (stack.enter_context(namespace(host)) for _ in range(2))
        web.attach(netplug, "blue", "--name", "web", "--publish", "8080:80")
        yield Scene(netplug, web, bare)


def test_rest_api_answers_whatever_is_asked(scene: Scene) -> None:
    words = WORDS | {"netns": [scene.bare.name, scene.web.name]}
    before = snapshot(scene.host)
    with session(scene.host.path(API)) as asking, scene.watched() as watch:

        def look(case: schemathesis.Case, ask: Ask, ill: bool) -> None:
            response = watch.ask(case, ask, lambda answer: str(answer["error"]["message"]))
            if response.status_code >= 400:
                assert response.json()["error"]["kind"] not in OURS, (case.as_curl_command(), response.text)
            else:
                _undo(asking, case, response)
            case.validate_response(response, checks=[*ANSWERS, *[checks.negative_data_rejection] * ill])

        count = probe(asking, words, look, without=APART)
        print(f"seed {SEED}: {count} requests, answers {dict(sorted(watch.told.items()))}")
        assert watch.told[400] > count / 4
        assert watch.told[201], "nothing was made"
    assert_same(before, lambda: snapshot(scene.host))


NETNS = "NETNS of the bare namespace"
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "name taken": ("POST", "networks", {"name": "blue"}, "blue"),
    "overlap": ("POST", "networks", {"name": "neu", "subnets": [{"subnet": "10.1.0.0/16"}]}, "overlap"),
    "unknown option": ("POST", "networks", {"name": "neu", "options": {"colour": "blue"}}, "colour"),
    "wrong value": ("POST", "networks", {"name": "neu", "options": {"mtu": "9"}}, "mtu"),
    "no parent": ("POST", "networks", {"name": "neu", "options": {"mode": "macvlan", "parent": "none0"}}, "none0"),
    "network in use": ("DELETE", "networks/blue", {}, "has an endpoint"),
    "no such network": ("POST", "attach", {"network": "nowhere", "netns": NETNS}, "nowhere"),
    "address in use": ("POST", "attach", {"network": "blue", "netns": NETNS, "addresses": ["10.1.0.1"]}, "10.1.0.1"),
    "address of another": (
        "POST",
        "attach",
        {"network": "blue", "netns": NETNS, "addresses": ["10.2.0.9"]},
        "10.2.0.9",
    ),
    "port in use": (
        "POST",
        "attach",
        {"network": "red", "netns": NETNS, "ports": [{"port": 80, "host_port": 8080}]},
        "8080",
    ),
    "no such namespace": ("POST", "attach", {"network": "blue", "netns": "nowhere"}, "nowhere"),
    "no such endpoint": ("POST", "publish", {"endpoint": "nobody", "ports": [{"port": 80}]}, "nobody"),
    "not to change": ("PATCH", "networks/blue", {"options": {"mode": "macvlan"}}, "mode"),
}
"""Refusals that only the engine can make: the form of the request is right."""


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_of_the_engine_has_touched_nothing(scene: Scene, case: str) -> None:
    """Not even for a moment: the kernel tells of what is made and undone."""
    method, path, body, word = REFUSED[case]
    body = {key: scene.bare.name if value is NETNS else value for key, value in body.items()}
    with session(scene.host.path(API)) as asking, scene.watched() as watch:
        answers: list[requests.Response] = []
        url = f"http://netplug/v1/{path}"
        untouched = watch.changes.untouched(lambda: answers.append(asking.request(method, url, json=body)))
        response = answers[-1]
        assert untouched, response.text
    assert response.status_code >= 400, response.text
    error = response.json()["error"]
    assert error["kind"] not in OURS
    assert word in error["message"]


def _undo(asking: requests.Session, case: schemathesis.Case, response: schemathesis.Response) -> None:
    """Take back what a request made."""
    if case.operation.label == "POST /v1/networks":
        assert asking.delete(f"http://netplug/v1/networks/{response.json()['id']}").status_code == 204
    elif case.operation.label == "POST /v1/attach":
        body = {key: case.body[key] for key in ("network", "netns", "ifname") if key in case.body}
        assert asking.post("http://netplug/v1/detach", json=body).status_code == 204
    elif case.operation.label == "POST /v1/dns/host":
        assert asking.delete("http://netplug/v1/dns/host").status_code == 204


def test_plugin_api_answers_whatever_is_asked(scene: Scene) -> None:
    words: dict[str, list[Any]] = {
        "Address": ["10.9.0.5/24", "10.9.0.5", ""],
        "AddressSpace": ["LocalDefault", "netplug-local"],
        "EndpointID": [ENDPOINT],
        "Gateway": ["10.9.0.1/24"],
        "MacAddress": ["02:42:0a:09:00:05", ""],
        "NetworkID": [NET],
        "Pool": ["10.9.0.0/24"],
        "PoolID": ["external/10.9.0.0/24", "nowhere"],
        "SandboxKey": ["/var/run/docker/netns/0"],
        "SubPool": ["10.9.0.0/25"],
    }
    before = snapshot(scene.host)
    with session(scene.host.path(PLUGIN)) as asking, scene.watched() as watch:

        def look(case: schemathesis.Case, ask: Ask, ill: bool) -> None:
            response = watch.ask(case, ask, lambda answer: str(answer["Err"]))
            answer = response.json()
            if response.status_code == 200:
                assert not answer.get("Err"), answer
                case.validate_response(response, checks=[*ANSWERS, *[checks.negative_data_rejection] * ill])
            else:
                assert answer["Err"] == answer["Error"]

        count = probe(asking, words, look)
        print(f"seed {SEED}: {count} requests, answers {dict(sorted(watch.told.items()))}")
        assert watch.told[200] > 20
        assert watch.told[500] > count / 4
        for method, body in (
            ("DeleteEndpoint", {"NetworkID": NET, "EndpointID": ENDPOINT}),
            ("DeleteNetwork", {"NetworkID": NET}),
        ):
            assert asking.post(f"http://netplug/NetworkDriver.{method}", json=body).status_code == 200
        for made in scene.netplug.client.get("networks")["networks"]:
            if made["front_end"] == "docker":
                asking.post("http://netplug/NetworkDriver.DeleteNetwork", json={"NetworkID": made["id"]})
    assert_same(before, lambda: snapshot(scene.host))


@pytest.mark.timeout(300)
def test_operations_that_remove_or_last_answer_whatever_is_asked() -> None:
    with made() as scene, session(scene.host.path(API)) as asking, scene.watched() as watch:
        words = WORDS | {"netns": [scene.web.name], "ifname": ["eth0"], "ref": ["one", "nowhere"]}
        words |= {"network": ["blue"], "source": ["web", "host"], "destination": ["10.1.0.1", "web:80"]}

        def look(case: schemathesis.Case, ask: Ask, ill: bool) -> None:
            response = watch.ask(case, ask, lambda answer: str(answer["error"]["message"]))
            if response.status_code >= 400:
                assert response.json()["error"]["kind"] not in OURS, (case.as_curl_command(), response.text)
            else:
                scene.mend()
            case.validate_response(response, checks=[*ANSWERS, *[checks.negative_data_rejection] * ill])

        for label in APART:
            watch.told.clear()
            examples = (EXAMPLES + 1) // 2 if "trace" in label else EXAMPLES  # each is waited for
            count = probe(asking, words, look, only=(label,), examples=examples)
            print(f"seed {SEED}: {label}: {count} requests, answers {dict(sorted(watch.told.items()))}")
            done = watch.told[200] + watch.told[204]
            assert done if "hosts" not in label else not done  # the only host is alive, and stays
        assert scene.netplug.client.get("diff")["differences"] == []
