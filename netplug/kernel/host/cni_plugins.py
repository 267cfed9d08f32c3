"""Executables of other people's CNI plugins: found in CNI_PATH and run as a runtime would."""

import asyncio
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from netplug.errors import NetplugError

DEADLINE_S = 60.0
"""A DHCP server may take its time; no runtime waits longer than a few minutes for a whole ADD."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a plugin ended."""

    code: int
    stdout: bytes
    stderr: bytes


def find(name: str, path: str) -> str:
    """Return the executable of a plugin in the folders of `path`, which colons separate.

    Raises:
        NetplugError: "not_found", with the folders.
    """
    if "/" not in name and name not in {"", ".", ".."}:
        for folder in filter(None, path.split(":")):
            candidate = os.path.join(folder, name)  # noqa: PTH118 - as the runtime put it together
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):  # noqa: PTH113
                return candidate
    hint = "install it there, or use ipam.type netplug-ipam"
    raise NetplugError("not_found", f"there is no plugin {name[:80]!r} in CNI_PATH {path!r}", hint=hint)


async def run(program: str, env: Mapping[str, str], stdin: bytes) -> Finished:
    """Run a plugin to its end. Of the environment it gets PATH and `env`.

    Raises:
        NetplugError: "unavailable": it cannot be started, or does not end.
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
