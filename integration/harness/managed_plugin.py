"""netplug as a managed plugin of a dockerd: built once a run, created, enabled, and removed with it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

from .dockerd import Dockerd
from .netplugd import Netplug
from .unpacked import FOLDER
from .wait import wait_until

NAME = "pynet:latest"
"""How Docker calls a plugin that was created as `pynet`; networks have to name it so."""
REGISTRY = "127.0.0.1:5000"
_BUILD = Path(__file__).resolve().parents[2] / "packaging/plugin/build_plugin.py"
_TIMEOUT_S = 120
"""dockerd compresses some 100 MB."""


def build_plugin(folder: Path) -> Path:
    """Build the plugin into a folder, and return it."""
    subprocess.run([sys.executable, _BUILD, folder], check=True, stdout=subprocess.DEVNULL)
    return folder


class ManagedPlugin(Netplug):
    """Its daemon is a process of dockerd's; everything else is as of a `Netplug`."""

    def __init__(self, dockerd: Dockerd, folder: Path, *settings: str) -> None:
        self.dockerd = dockerd
        self.host = dockerd.host
        self.create("pynet", folder)
        if settings:
            self.call("set", NAME, *settings)
        self.call("enable", NAME)

    def call(self, *args: str) -> str:
        """Run a `docker plugin` command and return what it printed."""
        return self.dockerd.docker("plugin", *args, timeout_s=_TIMEOUT_S)

    def create(self, name: str, folder: Path) -> None:
        self.call("create", name, str(folder))

    @property
    def running(self) -> bool:
        return self.call("inspect", "--format", "{{.Enabled}}", NAME) == "true"

    def version(self) -> str:
        """Return the version of the daemon that answers on the host."""
        return str(self.client.get("version")["version"])


def registry_command() -> str | None:
    """Return the program of a registry: what PATH has, or what `packaging/setup.sh` unpacked."""
    unpacked = FOLDER / "docker-registry/usr/bin/docker-registry"
    return which("docker-registry") or (str(unpacked) if unpacked.exists() else None)


@contextmanager
def registry(dockerd: Dockerd, program: str) -> Iterator[None]:
    """A registry on the host, at `REGISTRY`."""
    host = dockerd.host
    config = host.dir / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {host.dir}/registry}}}}\nhttp: {{addr: {REGISTRY}}}\n"
    )
    process = host.popen([program, "serve", str(config)], log="registry.log")
    try:
        wait_until(lambda: host.run(["curl", "-sf", f"http://{REGISTRY}/v2/"], check=False).returncode == 0)
        yield
    finally:
        process.kill()
