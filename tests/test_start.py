"""What is loaded when: most of the time until a command answers, or the daemon is ready, is imports.

Times are measured by bench/start.py; here is what they follow from.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HTTP = {"fastapi", "starlette", "uvicorn", "h11", "anyio", "netplug.frontends.rest.app", "netplug.frontends.http"}
CLIENTS = {"aiodocker", "aiohttp", "dbus_fast", "prometheus_client", "pyroute2", "netplug.store.etcd"}
CLUSTER = {"netplug.cluster.cluster", "netplug.cluster.questions", "netplug.cluster.shared_store"}
SHOWN = {"rich", "yaml", "netplug.insight.graph", "netplug.insight.trace.tracer", "netplug.insight.metrics.metrics"}

# Prints which modules are loaded when the daemon says READY=1, by the audit event of the message's sending, and ends.
READY = """
import asyncio, json, os, secrets, sys
from pathlib import Path

def hook(event, args):
    if event == "socket.sendto":
        print(json.dumps(sorted(name for name, module in sys.modules.items() if module is not None)), flush=True)
        os._exit(0)

sys.addaudithook(hook)
from netplug.cli import serving
serving._structlog_alone()
import netplug.kernel.linux
from netplug.config import load
from netplug.daemon.life import Daemon
from netplug.kernel.fake.kernel import FakeKernel

async def kernel():
    return FakeKernel()

folder = Path(sys.argv[1])
settings = load(state_dir=folder / "state", run_dir=folder / "run", plugin_dir=folder / "plugins")
namespace = "\\0netplug-test-" + secrets.token_hex(8)

async def run():
    await Daemon(settings, kernel=kernel, namespace=namespace, locks=folder / "locks").run()

asyncio.run(run())
"""


def loaded(code: str, *args: str, **env: str) -> set[str]:
    """Run code in a new interpreter, and return the modules that it prints in the end, as JSON."""
    command = [sys.executable, "-c", code, *args]
    given = {name: value for name, value in os.environ.items() if not name.startswith("NETPLUG_")} | env
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_daemon_is_ready_before_it_loads_what_answers_http(tmp_path: Path) -> None:
    found = loaded(READY, str(tmp_path), NOTIFY_SOCKET="@netplug-test-nobody")
    assert {"netplug.reconcile", "netplug.frontends.cni.server", "netplug.docker.events", "pydantic"} <= found
    assert found & (HTTP | CLIENTS | CLUSTER | SHOWN | {"pydantic_settings"}) == set()
