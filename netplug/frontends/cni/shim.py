"""The CNI executable in Python: hands a call to the daemon, and prints the answer.

`packaging/cni/shim.c` does the same, starts in a tenth of the time, and describes the protocol. This module is for
systems where that was not built. `netplug cni install` writes a script of a few lines that calls it, in an interpreter
without `site`. The lines are few because they are compiled at each start, while this module is cached. It imports only
what the interpreter has built in: the `socket` module alone would double the time. Without a daemon the process becomes
a netplug that does the work itself (`netplug.daemon.daemonless_queue`).
"""

import _socket
import posix
import sys

RUN_DIR = "/run/netplug"
VERSION = "0.2.0"
SOCKET = "cni.sock"
LINE = "NETPLUG_CNI_LINE"
"""Variable that tells `netplug.daemon.daemonless_queue` where the executable looked for the daemon."""
NETAVARK_API = "1.0.0"
SPEC_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
IO_FAILURE = 5
TRY_AGAIN = 11
"""Codes of the CNI specification."""


def run(run_dir: str, engine: str) -> None:
    """Be the plugin, and end the process: without ceremony, which spares a millisecond; nothing is buffered.

    `run_dir`: where the daemon is, unless the environment says otherwise. `engine`: the Python that has netplug.
    """
    posix._exit(main(run_dir, engine))  # noqa: SLF001 - it has no other name in this module


def main(run_dir: str = RUN_DIR, engine: str = "") -> int:
    """Do what the environment says, and return the exit code."""
    env = posix.environ
    name = sys.argv[0].rpartition("/")[2]
    command = env.get(b"CNI_COMMAND", b"")
    words = [key + b"=" + value for key, value in env.items() if key.startswith(b"CNI_")]
    if not command:
        if sys.argv[1:] in ([], ["info"]):
            return about(name)
        words = [b"NETAVARK_COMMAND=" + encoded(sys.argv[1]), b"NETAVARK_NETNS=" + encoded(sys.argv[-1])]
    try:
        given = read(0)
    except OSError as error:
        return refuse(b"", IO_FAILURE, f"stdin cannot be read: {error.strerror}")
    if command == b"VERSION":
        spoken = ", ".join(f'"{version}"' for version in SPEC_VERSIONS)
        return put(1, f'{{"cniVersion": "{version_asked(given)}", "supportedVersions": [{spoken}]}}\n'.encode())
    run_dir = env.get(b"NETPLUG_RUN_DIR", b"").decode("utf-8", "surrogateescape") or run_dir
    reply = ask(f"{run_dir}/{SOCKET}", b"\0".join((encoded(name), *words, b"", given)))
    if not reply:
        return alone(engine or sys.executable, run_dir, name, given)
    return say(reply)


def say(reply: bytes) -> int:
    """Print a reply, and return the exit code."""
    head, _, rest = reply.partition(b"\n")
    code, length = map(int, head.split())
    if put(1, rest[:length]):
        return 1
    put(2, rest[length:])
    return code


def about(name: str) -> int:
    """Tell of the plugin: CNI runtimes on stderr, netavark on stdout."""
    spoken = ", ".join(SPEC_VERSIONS)
    put(2, encoded(f"CNI {name} plugin v{VERSION}\nCNI protocol versions supported: {spoken}\n"))
    return put(1, f'{{"version": "{VERSION}", "api_version": "{NETAVARK_API}"}}\n'.encode())


def ask(path: str, request: bytes) -> bytes:
    """Return what the daemon says; nothing when there is none, or when it dies over it."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return b""
    reply = b""
    try:
        sock.sendall(request)
        sock.shutdown(_socket.SHUT_WR)
    except OSError:
        pass  # a daemon that stops listening may answer all the same
    try:
        while part := sock.recv(65536):
            reply += part
    except OSError:
        pass  # it is judged by what came
    sock.close()
    return reply if whole(reply) else b""


def whole(reply: bytes) -> bool:
    """Tell whether a reply has all that it says to have."""
    head, _, rest = reply.partition(b"\n")
    code, _, length = head.partition(b" ")
    if not code.isdigit() or len(code) > 3 or not length.isdigit() or len(length) > 10:
        return False
    # Of a larger code the caller would see the last 8 bits.
    return int(code) <= 255 and int(length) <= len(rest)


def alone(engine: str, run_dir: str, name: str, given: bytes) -> int:
    """Become a netplug that does the work itself, or waits for one that does."""
    try:
        fd = posix.memfd_create("stdin", 0)
        write(fd, given)
        posix.lseek(fd, 0, 0)
        posix.dup2(fd, 0)
        if fd:
            posix.close(fd)
    except OSError as error:
        return refuse(given, IO_FAILURE, f"stdin cannot be handed on: {error.strerror}")
    env = {**posix.environ, LINE.encode(): encoded(run_dir)}
    try:
        posix.execve(engine, [engine, "-I", "-m", "netplug.daemon.daemonless_queue", name, *sys.argv[1:]], env)
    except OSError as error:
        why = f"no netplug daemon answers, and {engine} cannot be started: {error.strerror}"
        return refuse(given, TRY_AGAIN, why)


def refuse(given: bytes, code: int, why: str) -> int:
    """Print why a call fails, in the form that the caller knows, and return the exit code."""
    if posix.environ.get(b"CNI_COMMAND"):
        put(1, encoded(f'{{"cniVersion": "{version_asked(given)}", "code": {code}, "msg": "{why}"}}\n'))
    else:
        put(1, encoded(f'{{"error": "{why}"}}\n'))
    return 1


def read(fd: int) -> bytes:
    """Return all that comes until the end."""
    parts = []
    while part := posix.read(fd, 65536):
        parts.append(part)
    return b"".join(parts)


def write(fd: int, data: bytes) -> None:
    """Write all of it."""
    while data:
        data = data[posix.write(fd, data) :]


def put(fd: int, data: bytes) -> int:
    """Print, and return the exit code: 1 when nobody is there to read."""
    try:
        write(fd, data)
    except OSError:
        return 1
    return 0


def encoded(text: str) -> bytes:
    """Return the bytes of an argument or a path."""
    return text.encode("utf-8", "surrogateescape")


def version_asked(given: bytes) -> str:
    """Return the version that a configuration names, if it is one; else the newest."""
    parts = given.partition(b'"cniVersion"')[2].split(b'"', 2)
    value = parts[1].decode("ascii", "replace") if len(parts) == 3 and parts[0].strip() == b":" else ""
    return value if value.replace(".", "").isalnum() else SPEC_VERSIONS[-1]
