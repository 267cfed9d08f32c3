"""What the CNI executable does: hands what it was given to the daemon, and prints the answer.

A runtime starts it for each command, so it is made to start fast: `netplug cni install` writes a file of a few lines
for an interpreter without `site`, and here is imported nothing but what that has built in (the `socket` module alone
would double the time). The lines are few because they are compiled each time, while this module is cached. Without a
daemon it becomes a netplug that does the work in process (`netplug.alone`).

netavark starts the same file, with arguments in place of variables.

A request is NUL-terminated words (the executable's name, ``KEY=VALUE`` of each variable), an empty one, and what came
on stdin; a reply is a line of exit code and length, so much for stdout, and the rest for stderr.
"""

import _socket
import posix
import sys

RUN_DIR = "/run/netplug"
VERSION = "0.1.0"
SOCKET = "cni.sock"
LINE = "NETPLUG_CNI_LINE"
"""Variable that tells `netplug.alone` where the executable looked for the daemon."""
NETAVARK_API = "1.0.0"
SPEC_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


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
        words = [f"NETAVARK_COMMAND={sys.argv[1]}".encode(), b"NETAVARK_NETNS=" + sys.argv[-1].encode()]
    given = read(0)
    if command == b"VERSION":
        asked = string_at(given, b'"cniVersion"') or SPEC_VERSIONS[-1]
        spoken = ",".join(f'"{version}"' for version in SPEC_VERSIONS)
        write(1, f'{{"cniVersion":"{asked}","supportedVersions":[{spoken}]}}\n'.encode())
        return 0
    run_dir = env.get(b"NETPLUG_RUN_DIR", b"").decode() or run_dir
    reply = ask(f"{run_dir}/{SOCKET}", b"\0".join((name.encode(), *words, b"", given)))
    if not reply:
        return alone(engine or sys.executable, run_dir, name, given)
    return say(reply)


def say(reply: bytes) -> int:
    """Print a reply, and return the exit code."""
    head, _, rest = reply.partition(b"\n")
    code, length = map(int, head.split())
    write(1, rest[:length])
    write(2, rest[length:])
    return code


def about(name: str) -> int:
    """Tell of the plugin: CNI runtimes on stderr, netavark on stdout."""
    spoken = ", ".join(SPEC_VERSIONS)
    write(2, f"CNI {name} plugin v{VERSION}\nCNI protocol versions supported: {spoken}\n".encode())
    write(1, f'{{"version":"{VERSION}","api_version":"{NETAVARK_API}"}}\n'.encode())
    return 0


def ask(path: str, request: bytes) -> bytes:
    """Return what the daemon says; nothing when there is none, or when it dies over it."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.connect(path)
        sock.sendall(request)
        sock.shutdown(_socket.SHUT_WR)
        reply = read(sock.fileno())
    except OSError:
        return b""
    finally:
        sock.close()
    return reply if b"\n" in reply else b""


def alone(engine: str, run_dir: str, name: str, given: bytes) -> int:
    """Become a netplug that does the work itself, or waits for one that does."""
    fd = posix.memfd_create("stdin", 0)
    write(fd, given)
    posix.lseek(fd, 0, 0)
    posix.dup2(fd, 0)
    env = {**posix.environ, LINE.encode(): run_dir.encode()}
    try:
        posix.execve(engine, [engine, "-I", "-m", "netplug.alone", name, *sys.argv[1:]], env)
    except OSError as error:
        words = f"no netplug daemon answers, and {engine} cannot be started: {error.strerror}"
        code = '"code":11,"msg"' if posix.environ.get(b"CNI_COMMAND") else '"error"'
        write(1, f'{{{code}:"{words}"}}\n'.encode())
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


def string_at(text: bytes, key: bytes) -> str:
    """Return the string that follows a key in a JSON text, if it is made of the signs of a version."""
    parts = text.partition(key)[2].split(b'"', 2)
    value = parts[1].decode("ascii", "replace") if len(parts) == 3 and parts[0].strip() == b":" else ""
    return value if value.replace(".", "").isalnum() else ""
