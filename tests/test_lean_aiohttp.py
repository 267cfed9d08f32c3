"""aiohttp as the daemon loads it."""

import subprocess
import sys

import pytest

DOCKER = """
import asyncio
from netplug.docker.engine_api import LostError, connected

async def ask():
    async with connected("unix:///nowhere/docker.sock") as docker:
        await docker.version()

try:
    asyncio.run(ask())
except LostError as error:
    print("lost")
"""
STORE = "import netplug.store.etcd; print('loaded')"
LOOK = """
import ssl
from aiohttp import connector
for context in (connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED):
    print(context.cert_store_stats()["x509_ca"])
print(connector._SSL_CONTEXT_VERIFIED.verify_mode == ssl.CERT_REQUIRED)
print("set_default_verify_paths" in vars(ssl.SSLContext))
"""


@pytest.mark.parametrize(("program", "says"), [(DOCKER, "lost"), (STORE, "loaded")], ids=["Docker", "etcd"])
def test_it_has_no_authorities_and_leaves_other_contexts_alone(program: str, says: str) -> None:
    """Those of the host are loaded nowhere else than in aiohttp: they would be there if it were loaded first."""
    done = subprocess.run((sys.executable, "-c", program + LOOK), check=True, capture_output=True, text=True)
    assert done.stdout.split() == [says, "0", "0", "True", "False"]
