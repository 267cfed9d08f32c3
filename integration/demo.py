"""The main functions as a user would type them, on a host of its own; `make demo` runs this.

Each step prints the command, its output, and what that proves. The demo does not change the machine: dockerd and
netplug run in namespaces that end with this process, however it ends. If an engine already runs on the machine, the
demo uses it instead: netplug runs beside it during the demo, and everything that the demo creates has a name of its
own.
"""

import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from time import monotonic

from harness import (
    CommandError,
    Dockerd,
    Host,
    Machine,
    Netplug,
    Snapshot,
    assert_same,
    connect,
    engine_runs,
    snapshot,
    wait_until,
)
from harness.dockerd import docker_command
from harness.netplugd import RUN_DIR

from netplug.lab.image import IMAGE, PAGE, busybox_rootfs_tar


@dataclass(frozen=True, slots=True)
class Stage:
    """The hosts of the demo. `far`: command by which `whence` fetches a page; `{port}` is replaced."""

    host: Host
    client: Host
    far: str
    whence: str
    port: int = 8080
    prefix: str = ""


class Demo:
    """Runs commands on the hosts, and prints what they show."""

    def __init__(self, stage: Stage) -> None:
        self.places = {"host": stage.host, "client": stage.client}
        self.steps = 0

    def say(self, what: str) -> None:
        self.steps += 1
        print(f"\n\033[1m{self.steps}. {what}\033[0m" if sys.stdout.isatty() else f"\n{self.steps}. {what}")

    def type(self, line: str, *, place: str = "host", show: bool = True) -> str:
        """Run a command line, and print it with its output; raises CommandError."""
        print(f"   {place}# {line}")
        answer = self.places[place].run(shlex.split(line)).stdout
        for text in answer.splitlines() if show else ():
            print(f"     {text}")
        return answer

    def check(self, holds: bool, proof: str) -> None:
        if not holds:
            raise AssertionError(f"step {self.steps} failed: {proof}")
        print(f"   ✓ {proof}")


def main() -> int:
    started = monotonic()
    # A SIGTERM must clean up as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    links = _links_of_the_machine()
    try:
        with ExitStack() as stack:
            stage = on_the_machine(stack) if engine_runs() else on_own_hosts(stack)
            show(stage, stack)
        assert_links(links)
    except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as exc:
        print(f"\ndemo failed: {exc}", file=sys.stderr)
        return 1
    print(f"\nAll steps passed, and the machine is as before ({monotonic() - started:.0f} s).")
    return 0


def _links_of_the_machine() -> str:
    """Return names and states of the machine's links, without those of an engine's other containers."""
    brief = subprocess.run(["ip", "-br", "link"], check=True, capture_output=True, text=True).stdout
    return "\n".join(line for line in brief.splitlines() if not line.startswith(("veth", "docker", "br-")))


def assert_links(before: str) -> None:
    if _links_of_the_machine() != before:
        raise AssertionError(f"the machine's links have changed, before:\n{before}")


def on_own_hosts(stack: ExitStack) -> Stage:
    """Start a dockerd in namespaces, and another host on a cable to it."""
    host = stack.enter_context(Host("demo"))
    client = stack.enter_context(Host("client"))
    wire = connect(host, client)
    Dockerd(host)
    return Stage(
        host, client, f"curl -sS --fail --max-time 5 http://{wire.left}:{{port}}/", f"a client at {wire.right}"
    )


def on_the_machine(stack: ExitStack) -> Stage:
    """Use the running engine, and a container on its own bridge instead of another host."""
    host = stack.enter_context(Machine())
    docker = docker_command()
    if not host.output(docker, "image", "ls", "-q", IMAGE):
        subprocess.run(
            [docker, "import", "-", IMAGE], check=True, input=busybox_rootfs_tar(), stdout=subprocess.DEVNULL
        )
        stack.callback(host.run, [docker, "image", "rm", IMAGE])
    gateway = host.output(docker, "run", "--rm", IMAGE, "ip", "route", "show", "default").split()[2]
    far = f"docker run --rm {IMAGE} wget -q -O - http://{gateway}:{{port}}/"
    return Stage(host, host, far, "a container of Docker's own bridge", _free_port(), "netplug-demo-")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


def show(stage: Stage, stack: ExitStack) -> None:
    """Run the steps; the first failure raises. `stack` cleans up after a failed step."""
    demo, host, port = Demo(stage), stage.host, stage.port
    blue, web, shell = (f"{stage.prefix}{name}" for name in ("blue", "web", "shell"))
    demo.say(f"A real dockerd and netplug, {host.described} (state in SQLite, no other service)")
    netplug = Netplug(host)
    stack.callback(end, netplug)
    host.env["PATH"] = f"{netplug.command()[0].rpartition('/')[0]}:{host.env['PATH']}"
    host.env |= {"COLUMNS": "150", "NETPLUG_RUN_DIR": RUN_DIR}
    demo.type("docker version --format {{.Server.Version}}")
    demo.type("netplug version")
    demo.type(f"docker image ls {IMAGE}")
    demo.check(netplug.running, "both daemons answer; the image needs no registry")
    # Create what the daemons create at first use and keep.
    demo.type(f"docker network create -d pynet --ipam-driver pynet {stage.prefix}first", show=False)
    demo.type(f"docker network rm {stage.prefix}first", show=False)
    before = seen(stage, netplug)

    demo.say("A network")
    demo.type(f"docker network create -d pynet --ipam-driver pynet --subnet 10.42.0.0/24 {blue}", show=False)
    stack.callback(tidy, host, "network", "rm", blue)
    kind = demo.type(f"docker network inspect -f '{{{{.Driver}}}} {{{{(index .IPAM.Config 0).Subnet}}}}' {blue}")
    demo.check(kind.split() == ["pynet", "10.42.0.0/24"], "the network uses netplug and has the requested subnet")

    demo.say("Two containers, one with a published port")
    run = f"docker run -d --network {blue} --name"
    demo.type(f"{run} {web} -p {port}:80 {IMAGE} httpd -f -h /www", show=False)
    stack.callback(tidy, host, "rm", "-f", web)
    demo.type(f"{run} {shell} --init {IMAGE} sleep 3600", show=False)
    stack.callback(tidy, host, "rm", "-f", shell)
    demo.type(f"docker exec {shell} ip addr show eth0")
    answer = demo.type(f"docker exec {shell} ping -c 2 -W 2 {web}")
    demo.check(" 0% packet loss" in answer, "the containers reach each other, by name")

    demo.say("The published port")
    far, place = stage.far.format(port=port), "host" if stage.client is host else "client"
    page = wait_until(lambda: demo.type(far, place=place), 10, "the page", ignoring=(CommandError,))
    demo.check(page == PAGE, f"{stage.whence} reads the page through the published port")
    near = f"curl -sS --fail --max-time 5 http://127.0.0.1:{port}/"
    demo.check(demo.type(near) == PAGE, "so does the host itself, at 127.0.0.1")

    demo.say("What netplug shows")
    demo.type(f"docker network inspect -f '{{{{json .Containers}}}}' {blue}")
    demo.type("netplug ps")
    ports = [text for endpoint in netplug.json("ps", "--network", blue) for text in endpoint["ports"]]
    demo.check(
        f"0.0.0.0:{port}->80/tcp" in ports,
        "netplug ps lists both endpoints and the published port, which Docker cannot show",
    )
    demo.check("10.42.0.0/24" in demo.type("netplug ipam ls"), "netplug ipam ls lists the pool and its leases")
    demo.type("netplug diff")
    demo.check(not netplug.drift(), "kernel and records agree")

    demo.say("Removal")
    demo.type(f"docker rm -f {web} {shell}", show=False)
    demo.type(f"docker network rm {blue}", show=False)
    assert_same(before, lambda: seen(stage, netplug))
    demo.check(True, "links, addresses, routes, rules, sets, sockets and leases are as before")


def seen(stage: Stage, netplug: Netplug) -> Snapshot:
    """Return the host's network state; on a machine with other users, only what the demo may have created."""
    taken = snapshot(stage.host, netplug)
    if not stage.prefix:
        return taken
    ours = re.compile(rf"netplug|\bnp[-hs]|10\.42\.0\.|:{stage.port}\b", re.IGNORECASE)
    return {section: tuple(line for line in lines if ours.search(line)) for section, lines in taken.items()}


def tidy(host: Host, *args: str) -> None:
    """Clean up after a failed step."""
    with suppress(CommandError):
        host.run([docker_command(), *args])


def end(netplug: Netplug) -> None:
    if netplug.running:
        netplug.stop()


if __name__ == "__main__":
    sys.exit(main())
