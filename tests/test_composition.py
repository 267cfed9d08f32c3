"""The composition: what the daemon and a CNI command without a daemon are made of, and what a command need not load."""

import json
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from living import settings_in

from netplug.cluster.identity import Machine
from netplug.daemon.composition import Composition, compose, open_host
from netplug.kernel.api import HostKernel
from netplug.kernel.fake.kernel import FakeKernel

MACHINE = Machine("here")
HEAVY = ["aiodocker", "aiohttp", "fastapi", "starlette", "uvicorn", "netplug.names.server", "netplug.docker.events"]
HEAVY += ["netplug.cluster.cluster", "netplug.cluster.shared_store"]
COMMAND = """
import asyncio, json, os, sys
from functools import partial
from pathlib import Path
from netplug.daemon import composition, daemonless
from netplug.daemon.daemonless_queue import CallQueue
from netplug.daemon.namespace_lock import claim_namespace
from netplug.kernel.fake.kernel import FakeKernel

async def kernel():
    return FakeKernel()

run_dir = os.environ["NETPLUG_RUN_DIR"]
composition.linux_kernel = kernel
daemonless.claim_namespace = partial(claim_namespace, f"\\0netplug-test-{os.getpid()}", Path(run_dir) / "namespaces")
reply = daemonless.answer(sys.stdin.buffer.read(), CallQueue(run_dir))
print(json.dumps([reply.code, sorted(sys.modules)]))
"""


async def composed(folder: Path, stack: AsyncExitStack, *, docker: bool = False) -> Composition:
    async def kernel() -> HostKernel:
        return FakeKernel()

    (folder / "state").mkdir()
    settings = settings_in(folder, docker_host="unix:///nowhere/docker.sock")
    return await compose(await open_host(settings, stack, kernel=kernel, machine=MACHINE), None, docker=docker)


async def test_each_part_is_made_once(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        parts = await composed(tmp_path, stack, docker=True)
        names = ("reconciler", "cni", "name_server", "sandbox_resolvers", "docker", "api", "plugin", "background")
        first = [getattr(parts, name) for name in names]
        assert all(getattr(parts, name) is part for name, part in zip(names, first, strict=True))
        assert parts.background.keys() == {"reconciler", "dns", "dns.host", "dns.sandboxes", "dhcp", "store", "docker"}


@pytest.mark.parametrize("text", ["true", "false", ""])
async def test_forwarding_of_others_is_as_the_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("NETPLUG_FORWARD_OTHERS", text)
    async with AsyncExitStack() as stack:
        parts = await composed(tmp_path, stack)
        assert (await parts.engine.base_plan.read_host()).forward_others is (text == "true")


async def test_without_docker_nothing_follows_it(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        parts = await composed(tmp_path, stack, docker=False)
        assert parts.docker is None
        assert parts.background.keys() == {"reconciler", "dns", "dns.host", "dns.sandboxes", "dhcp", "store"}


@pytest.mark.parametrize("command", ["STATUS", "GC"])
def test_a_command_without_a_daemon_loads_no_server(tmp_path: Path, command: str) -> None:
    (tmp_path / "state").mkdir()
    env = {"NETPLUG_STATE_DIR": str(tmp_path / "state"), "NETPLUG_RUN_DIR": str(tmp_path)}
    config = json.dumps({"cniVersion": "1.1.0", "name": "blue", "type": "pynet", "cni.dev/valid-attachments": []})
    request = f"pynet\0CNI_COMMAND={command}\0\0{config}".encode()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], input=request, env=os.environ | env, capture_output=True, check=True
    )
    code, modules = json.loads(done.stdout)
    assert code == 0
    assert not set(HEAVY) & set(modules)
