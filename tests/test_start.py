"""What is loaded when: most of the time until a command answers, or the daemon is ready, is imports.

Times are measured by bench/start.py; here is what they follow from.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HTTP = {"fastapi", "starlette", "uvicorn", "h11", "anyio", "netplug.frontends.rest.app", "netplug.frontends.http"}
CLIENTS = {"aiodocker", "aiohttp", "dbus_fast", "prometheus_client", "pyroute2", "netplug.store.etcd"}
CLUSTER = {"netplug.cluster.cluster", "netplug.cluster.questions", "netplug.cluster.shared_store"}
SHOWN = {"rich", "yaml", "netplug.insight.graph", "netplug.insight.trace.tracer", "netplug.insight.metrics.metrics"}

# Prints which modules are loaded when the daemon says READY=1, by the audit event of the message's sending, and ends.
READY = """
import asyncio, json, os, secrets, sys
from pathlib import Path

import pytest

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


COMMAND = """
import json, sys
from netplug.cli import main
main(sys.argv[1:])
print()
print(json.dumps(sorted(name for name, module in sys.modules.items() if module is not None)))
"""
HEAVY = HTTP | CLIENTS | SHOWN | {"asyncio", "pydantic", "structlog", "netplug.config", "netplug.engine"}


@pytest.mark.parametrize(
    "words", ["--help", "version", "ps", "network ls", "network create blue", "attach x --netns y"]
)
def test_a_command_loads_what_it_needs(words: str, tmp_path: Path) -> None:
    found = loaded(COMMAND, *words.split(), NETPLUG_RUN_DIR=str(tmp_path))
    assert found & HEAVY == set()
    assert "http.client" not in found  # nobody answers


def test_a_command_loads_no_other_commands(tmp_path: Path) -> None:
    found = loaded(COMMAND, "ps", NETPLUG_RUN_DIR=str(tmp_path))
    assert {name for name in found if name.startswith("netplug.")} == {
        "netplug.cli",
        "netplug.cli.app",
        "netplug.cli.client",
        "netplug.cli.endpoints",
        "netplug.cli.lazy",
        "netplug.cli.options",
        "netplug.cli.output",
        "netplug.cli.parameters",
        "netplug.errors",
        "netplug.errors.printable",
        "netplug.names",
        "netplug.names.short_ids",
    }
