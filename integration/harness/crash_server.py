"""Run inside a host: starts netplug processes that can be made to die at a chosen point (`crash_hook`).

It has loaded netplug once, and each process is a fork of it: a daemon is there after a tenth of a second. A process is
asked for by a connection to a socket, one JSON line: `argv`, `env`, `entry` (such as `netplug.cli:main`), `stdin`, and
`out`, where its output goes. The answer is its number. The connection ends when the process does.
"""

import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import crash_hook

PRELOADED = (
    "netplug.cli.app",
    "netplug.cli.serving",
    "netplug.config",
    "netplug.daemon.daemonless",
    "netplug.daemon.life",
    "netplug.daemon.systemd",
    "netplug.frontends.cni.server",
    "netplug.frontends.docker.network",
    "netplug.frontends.lean_uvicorn",
    "netplug.frontends.rest.app",
    "netplug.frontends.serving",
    "netplug.cluster.cluster",
    "netplug.store.etcd",
    "pyroute2.netlink.rtnl.tcmsg",
)


def main(address: str, control: str) -> None:
    from netplug.cli.serving import _structlog_alone  # noqa: PLC0415 - as the daemon does, before all else

    _structlog_alone()
    crash_hook.install(crash_hook.Control(Path(control)))
    for name in PRELOADED:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{address}.new")
        listener.listen()
        Path(f"{address}.new").rename(address)  # who sees it can connect
        while True:
            connection, _ = listener.accept()
            with connection:
                asked = json.loads(connection.makefile().readline())
                if "kill" in asked:
                    os.kill(asked["kill"], asked["signal"])
                    continue
                if not (pid := os.fork()):
                    listener.close()
                    run(asked)
                connection.sendall(f"{pid}\n".encode())


def run(asked: dict[str, Any]) -> None:
    """Be the process; does not return. It keeps the connection open."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        out = os.open(asked["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        read, write = os.pipe()
        os.write(write, asked.get("stdin", "").encode())
        os.close(write)
        os.dup2(read, 0)
        for fd in (read, out):
            os.close(fd)
        os.environ.clear()
        os.environ.update(asked["env"])
        sys.argv = list(asked["argv"])
        module, _, function = asked["entry"].partition(":")
        code = getattr(importlib.import_module(module), function)() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - it ends here
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
