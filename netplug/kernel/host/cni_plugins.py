"""Third-party CNI plugins: finds their executables in CNI_PATH and runs them as a runtime does."""

import asyncio
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from netplug.errors import NetplugError

DEADLINE_S = 60.0
"""A DHCP server may be slow. Runtimes wait no longer than a few minutes for ADD."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Exit code and output of a plugin."""

    code: int
    stdout: bytes
    stderr: bytes


def find(name: str, path: str) -> str:
    """Return the executable of a plugin. `path`: directories, separated by colons.

    Raises:
        NetplugError: "not_found"; the message has the directories.
    """
    if "/" not in name and name not in {"", ".", ".."}:
        for folder in filter(None, path.split(":")):
            candidate = os.path.join(folder, name)  # noqa: PTH118 - keeps the path as the runtime gave it
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):  # noqa: PTH113
                return candidate
    hint = "install it there, or use ipam.type netplug-ipam"
    raise NetplugError("not_found", f"there is no plugin {name[:80]!r} in CNI_PATH {path!r}", hint=hint)


async def run(program: str, env: Mapping[str, str], stdin: bytes) -> Finished:
    """Run a plugin and wait until it ends. Its environment is PATH and `env`.

    Raises:
        NetplugError: "unavailable": it cannot be started, or does not end within `DEADLINE_S`.
    """

    def work() -> Finished:
        given = {"PATH": os.environ.get("PATH", os.defpath), **env}
        done = subprocess.run([program], input=stdin, capture_output=True, env=given, timeout=DEADLINE_S, check=False)
        return Finished(done.returncode, done.stdout, done.stderr)

    try:
        return await asyncio.to_thread(work)
    except OSError as exc:
        raise NetplugError("unavailable", f"plugin {program} cannot be started: {exc.strerror}") from exc
    except subprocess.TimeoutExpired as exc:
        raise NetplugError("unavailable", f"plugin {program} did not end within {DEADLINE_S:.0f} s") from exc
