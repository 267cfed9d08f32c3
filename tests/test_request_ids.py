"""One request is followed through the log, from who asks to the kernel's answer."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_host import Host
from living import living

from netplug.frontends.cni.service import CniService
from netplug.frontends.cni.wire import Call
from netplug.kernel.netlink.worker import Worker
from netplug.kernel.threads import in_new_thread
from netplug.log import configure
from netplug.tasks.request import current, working_for

pytestmark = pytest.mark.usefixtures("own_log")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def ask_plugin(path: Path, method: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        head = f"POST /{method} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode() + data)
        return b"".join(iter(lambda: sock.recv(65536), b""))


async def test_threads_of_ours_know_the_request() -> None:
    worker = Worker()
    with working_for("docker", "x") as request:
        assert in_new_thread("netplug-test", lambda: current().id) == request.id
        assert await worker.do(lambda: current().id) == request.id
    assert await worker.do(lambda: current().id) == ""
    await worker.close()


async def test_cni_and_netavark_calls_have_ids(capsys: pytest.CaptureFixture[str]) -> None:
    host = await Host.boot()
    configure("json", "debug")
    told: list[Any] = []
    host.engine.happenings.watchers.append(told.append)
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/box", "CNI_IFNAME": "eth0"}
    config = {"cniVersion": "1.1.0", "name": "blue", "type": "pynet"}
    await CniService(host.engine).answer(Call("pynet", env, json.dumps(config).encode()))
    await CniService(host.engine).answer(
        Call("pynet", {"NETAVARK_COMMAND": "setup", "NETAVARK_NETNS": "/run/netns/box"}, b"{}")
    )
    await host.close()
    logged = lines(capsys.readouterr().err)
    answered = [line for line in logged if line["event"] == "request.answered"]
    assert [(line["asker"], line["verb"], line["outcome"]) for line in answered] == [
        ("cni", "ADD", "ok"),
        ("netavark", "setup", "invalid"),
    ]
    add = answered[0]["request_id"]
    assert {line["event"] for line in logged if line.get("request_id") == add} >= {
        "network.created", "endpoint.created", "intent.begun", "plan.applied", "intent.done", "request.answered",
    }  # fmt: skip
    by = {(str(it.kind), it.by, it.cause, it.request) for it in told}
    assert ("endpoint.created", "cni", "ADD", add) in by
    assert any(kind == "request.refused" and asker == "netavark" for kind, asker, _, _ in by)


def test_a_request_of_docker_s_has_one_id_in_log_answer_and_events(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with living(tmp_path) as daemon:
        configure("json", "debug")
        pool = {"AddressSpace": "LocalDefault", "Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24"}
        body = {"NetworkID": "a" * 64, "Options": {}, "IPv4Data": [pool], "IPv6Data": []}
        assert b"200 OK" in ask_plugin(daemon.settings.plugin_socket, "NetworkDriver.CreateNetwork", body)
        events = daemon.client.get("events", kind="network")["events"]
        seen = daemon.do_and_get(lambda it: dict(it._parts.engine.requests.seen))
    logged = lines(capsys.readouterr().err)
    (created,) = events
    assert (created["by"], created["cause"]) == ("docker", "NetworkDriver.CreateNetwork")
    mine = [line for line in logged if line.get("request_id") == created["request"]]
    steps = {"intent.begun", "plan.applied", "request.answered"}
    assert [line["event"] for line in mine if line["event"] in steps] == [
        "plan.applied", "intent.begun", "plan.applied", "request.answered",
    ]  # fmt: skip
    assert ("docker", "NetworkDriver.CreateNetwork", "ok") in seen
    assert ("cli", "GET /v1/events", "ok") in seen


def test_paths_that_nobody_serves_are_one_label(tmp_path: Path) -> None:
    with living(tmp_path) as daemon:
        for word in ("One", "Two"):
            ask_plugin(daemon.settings.plugin_socket, f"NetworkDriver.{word}", {})
        seen = daemon.do_and_get(lambda it: dict(it._parts.engine.requests.seen))
    assert [key for key in seen if key[0] == "docker"] == [("docker", "unknown", "unknown")]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a network namespace of its own")
def test_a_request_is_followed_to_the_kernel_s_answer() -> None:
    code = (
        "import asyncio, sys\n"
        "from netplug.kernel.linux import LinuxKernel\n"
        "from netplug.kernel.executor import Executor\n"
        "from netplug.drivers.plan import Plan\n"
        "from netplug.drivers.steps import Bridge\n"
        "from netplug.log import configure\n"
        "from netplug.tasks.request import working_for\n"
        "async def main():\n"
        "    async with await LinuxKernel.open() as kernel:\n"
        "        with working_for('docker', 'x') as request:\n"
        "            await Executor(kernel).apply(Plan((Bridge('np-test', '02:00:00:00:00:01', 1500),)))\n"
        "            print(request.id)\n"
        "configure('json', 'debug')\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ident = done.stdout.strip()
    found = {line["event"]: line for line in lines(done.stderr) if line.get("request_id") == ident}
    assert found["kernel.answered"]["steps"] == ["link/np-test"]
    assert list(found["plan.applied"]["steps"]) == ["link/np-test"]
