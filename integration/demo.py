"""The main job as a user would type it, on a host of its own; what `make demo` runs.

Each step prints the command, its answer, and what that proves. Nothing of the machine is touched: dockerd and netplug
run in namespaces that end with this process, whichever way it ends.
"""

import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack
from time import monotonic

from harness import CommandError, Dockerd, Host, Netplug, assert_same, connect, snapshot, wait_until
from harness.image import IMAGE, PAGE


class Demo:
    """A narrator: runs commands on the hosts and says what they show."""

    def __init__(self, host: Host, client: Host) -> None:
        self.places = {"host": host, "client": client}
        self.steps = 0

    def say(self, what: str) -> None:
        self.steps += 1
        print(f"\n\033[1m{self.steps}. {what}\033[0m" if sys.stdout.isatty() else f"\n{self.steps}. {what}")

    def type(self, line: str, *, place: str = "host", show: bool = True) -> str:
        """Run a command line as typed and print it with its answer; raises CommandError."""
        print(f"   {place}# {line}")
        answer = self.places[place].run(shlex.split(line)).stdout
        for text in answer.splitlines() if show else ():
            print(f"     {text}")
        return answer

    def check(self, holds: bool, proof: str) -> None:
        if not holds:
            raise AssertionError(f"step {self.steps}: not so: {proof}")
        print(f"   ✓ {proof}")


def main() -> int:
    started = monotonic()
    # Ended from outside, it takes its hosts down all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with ExitStack() as stack:
            host = stack.enter_context(Host("demo"))
            client = stack.enter_context(Host("client"))
            show(host, client)
    except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as exc:
        print(f"\ndemo failed: {exc}", file=sys.stderr)
        return 1
    print(f"\nAll steps hold, and the machine is as it was ({monotonic() - started:.0f} s).")
    return 0


def _links_of_the_machine() -> str:
    return subprocess.run(["ip", "-br", "link"], check=True, capture_output=True, text=True).stdout


def show(host: Host, client: Host) -> None:
    """Walk through the steps; the first that fails raises."""
    links = _links_of_the_machine()
    demo = Demo(host, client)
    wire = connect(host, client)
    demo.say("A real dockerd and netplug, in namespaces of their own (SQLite inside, no other service)")
    dockerd = Dockerd(host)
    netplug = Netplug(host)
    host.env["PATH"] = f"{netplug.command()[0].rpartition('/')[0]}:{host.env['PATH']}"
    host.env["COLUMNS"] = "150"
    demo.type("docker version --format {{.Server.Version}}")
    demo.type("netplug version")
    demo.type("docker image ls")
    demo.check(dockerd.running and netplug.running, "both daemons answer; the image came from no registry")
    # What the daemons make at first use and keep.
    demo.type("docker network create -d pynet --ipam-driver pynet first", show=False)
    demo.type("docker network rm first", show=False)
    before = snapshot(host, netplug)

    demo.say("A network")
    demo.type("docker network create -d pynet --ipam-driver pynet --subnet 10.42.0.0/24 blue", show=False)
    kind = demo.type("docker network inspect -f '{{.Driver}} {{(index .IPAM.Config 0).Subnet}}' blue")
    demo.check(kind.split() == ["pynet", "10.42.0.0/24"], "the network is ours and has the subnet asked for")

    demo.say("Two containers, one with a published port")
    demo.type(f"docker run -d --name web --network blue -p 8080:80 {IMAGE} httpd -f -h /www", show=False)
    demo.type(f"docker run -d --name shell --init --network blue {IMAGE} sleep 3600", show=False)
    demo.type("docker exec shell ip addr show eth0")
    answer = demo.type("docker exec shell ping -c 2 -W 2 web")
    demo.check(" 0% packet loss" in answer, "the containers reach each other, by name")

    demo.say("The page, from another host")
    url = f"http://{wire.left}:8080/"
    page = wait_until(lambda: fetch(demo, url, "client"), 10, "the page", ignoring=(CommandError,))
    demo.check(page == PAGE, f"a client at {wire.right} reads it through the published port")
    demo.check(fetch(demo, "http://127.0.0.1:8080/", "host") == PAGE, "so does the host itself, by its loopback")

    demo.say("What netplug knows")
    demo.type("docker network inspect -f '{{json .Containers}}' blue")
    demo.type("netplug ps")
    ports = [port for endpoint in netplug.json("ps") for port in endpoint["ports"]]
    demo.check(ports == ["0.0.0.0:8080->80/tcp"], "both endpoints, and the published port, which Docker cannot show")
    demo.check("10.42.0.0/24" in demo.type("netplug ipam ls"), "the pool and its leases")
    demo.type("netplug diff")
    demo.check(not netplug.drift(), "kernel and plan agree")

    demo.say("Everything down again")
    demo.type("docker rm -f web shell", show=False)
    demo.type("docker network rm blue", show=False)
    assert_same(before, lambda: snapshot(host, netplug))
    demo.check(True, "links, addresses, routes, rules, sets, sockets and leases are what they were before")
    netplug.stop()
    dockerd.stop()
    demo.check(_links_of_the_machine() == links, "the machine's own links were never touched")


def fetch(demo: Demo, url: str, place: str) -> str:
    return demo.type(f"curl -sS --fail --max-time 5 {url}", place=place)


if __name__ == "__main__":
    sys.exit(main())
