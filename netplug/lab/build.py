"""Builds a lab step by step, and removes it completely."""

import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from netplug.errors import NetplugError
from netplug.lab import podman, underlay
from netplug.lab.containers import Attached, Container, create_docker_network, create_network
from netplug.lab.file import ETCD, Lab
from netplug.lab.image import IMAGE, busybox_rootfs_tar
from netplug.lab.node import Node, end_all, environment, until
from netplug.lab.state import DIR, Member, State, names
from netplug.lab.status import Reachability, Resolved, missing

READY_TIMEOUT_S = 40.0
"""A daemon is usually ready within one second, a dockerd within three; a busy machine takes longer."""
REACH_TIMEOUT_S = 30.0
TOOLS = ("unshare", "nsenter", "ip", "tc", "nft", "setsid")

Say = Callable[[str], None]
T = TypeVar("T")
R = TypeVar("R")


def up(lab: Lab, base: Path, say: Say) -> State:
    """Build a lab and wait until its containers reach each other, by name too. `say` reports progress.

    Raises:
        NetplugError: "exists"; or a step failed, and the lab was removed again.
    """
    _check(lab, base)
    state = State(lab, base / lab.name)
    try:
        state.folder.mkdir(parents=True)
        # From here on 'lab down' finds the lab, even after a crash.
        state.save()
    except OSError as exc:
        raise NetplugError("unavailable", f"{state.folder} cannot be created: {(exc.strerror or '').lower()}") from None
    try:
        _build(state, say)
    except BaseException:
        down(state)
        raise
    return state


def _check(lab: Lab, base: Path) -> None:
    if lab.name in names(base):
        raise NetplugError("exists", f"lab {lab.name!r} is up", hint=f"netplug lab down --lab {lab.name}")
    wanted = [*TOOLS, *(["etcd", "etcdctl"] if lab.store == ETCD else [])]
    wanted += ["dockerd", "docker", "busybox"] if any(host.docker for host in lab.hosts.values()) else []
    wanted += ["podman", "busybox"] if any(lab.of_podman(host) for host in lab.hosts) else []
    absent = [tool for tool in wanted if not shutil.which(tool, path=environment()["PATH"])]
    if absent:
        raise NetplugError("unavailable", f"missing commands: {', '.join(absent)}", hint="make setup")


def _build(state: State, say: Say) -> None:
    lab = state.lab
    begun = time.monotonic()

    def done(what: str) -> None:
        state.save()
        say(f"{time.monotonic() - begun:5.1f} s  {what}")

    underlay.make(state)
    state.save()
    for name, node in zip(underlay.order(lab), each(underlay.order(lab), lambda it: _place(state, it)), strict=True):
        state.members[name] = Member(node.pid, node.since, underlay.addresses(lab, name))
        state.save()
        underlay.connect(state, node)
    done(f"{_count(len(lab.hosts), 'host')} on a switch, {lab.underlay.ipv4} and {lab.underlay.ipv6}")
    if lab.store == ETCD:
        start_etcd(state)
        done(f"etcd at {state.etcd()}")
    each(lab.hosts, lambda it: start_host(state, it))
    done(
        "a daemon on each host"
        + (", and a dockerd where the file says so" if any(it.docker for it in lab.hosts.values()) else "")
    )
    for name in lab.networks:
        _network(state, name)
    done(_count(len(lab.networks), "network"))
    for made in each(lab.hosts, lambda it: _containers(state, it)):
        for name, networks in made.items():
            state.containers[name] = {network: it.addresses for network, it in networks.items()}
            state.servers[name] = {network: it.servers for network, it in networks.items()}
    done(_count(len(lab.containers), "container"))
    _wait(state)
    done(f"{_count(len(lab.pairs()), 'pair')} of containers in a network reach each other, by name too")


def each(names: Iterable[T], work: Callable[[T], R]) -> list[R]:
    """Do the same work for several names in parallel, and return the results in order."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, names))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _place(state: State, name: str) -> Node:
    return Node.start(name, name, state.folder / name)


def start_etcd(state: State) -> None:
    """Start etcd, and wait until it answers."""
    node, own = state.node(ETCD), state.members[ETCD].addresses[0]
    argv = ["etcd", "--data-dir", str(node.folder / "data"), "--log-level", "warn"]
    argv += ["--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", f"http://{own}:2379"]
    argv += ["--listen-peer-urls", "http://127.0.0.1:2380"]
    state.members[ETCD].processes[ETCD] = node.spawn(argv, "etcd.log")
    state.save()
    _ready(state, ETCD, ETCD, ["etcdctl", "endpoint", "health"])


def start_host(state: State, name: str) -> None:
    """Start a host's daemon and its dockerd unless they run, and wait until they answer."""
    start_daemon(state, name)
    if state.lab.hosts[name].docker:
        _start_dockerd(state, name)


def start_daemon(state: State, name: str) -> None:
    """Start a host's daemon unless it runs, and wait until it answers."""
    part, node, member = state.lab.hosts[name], state.node(name), state.members[name]
    if node.lives(member.processes.get("netplug", 0)):
        return
    argv = ["netplug", "serve", "--state-dir", str(node.folder / "netplug"), "--host-name", name]
    argv += ["--docker-host", "unix:///run/docker.sock" if part.docker else "none"]
    if state.lab.store == ETCD:
        argv += ["--store", state.etcd(), "--vtep", member.addresses[0 if state.lab.underlay.family == 4 else 1]]
    member.processes["netplug"] = node.spawn([*argv, *part.serve], "netplug.log")
    _ready(state, name, "netplug", ["netplug", "network", "ls"])


def _start_dockerd(state: State, name: str) -> None:
    node, member = state.node(name), state.members[name]
    if node.lives(member.processes.get("dockerd", 0)):
        return
    config = node.folder / "daemon.json"
    config.write_text("{}\n")
    argv = ["dockerd", "--data-root", str(node.folder / "docker"), "--config-file", str(config)]
    argv += ["--log-level", "warn", "--cgroup-parent", f"/{node.group}", "--exec-opt", "native.cgroupdriver=cgroupfs"]
    member.processes["dockerd"] = node.spawn(argv, "dockerd.log")
    _ready(state, name, "dockerd", ["docker", "version"])
    if not node.run("docker", "image", "ls", "-q", IMAGE):
        node.run("docker", "import", "-", IMAGE, stdin=busybox_rootfs_tar())


def _ready(state: State, name: str, process: str, question: list[str]) -> None:
    """Wait until a command succeeds.

    Raises:
        NetplugError: "unavailable"; the message has the log's last line.
    """
    node, pid = state.node(name), state.members[name].processes[process]

    def answers() -> bool:
        return not node.lives(pid) or not node.try_run(*question, env={"ETCDCTL_API": "3"}).returncode

    if not until(answers, READY_TIMEOUT_S) or not node.lives(pid):
        verb = "does not answer" if node.lives(pid) else "ended"
        words = f"{process} of {name} {verb}: {node.last_words(f'{process}.log')}"
        raise NetplugError("unavailable", words)


def _network(state: State, name: str) -> None:
    lab = state.lab
    hosts = lab.nodes(name)
    if lab.networks[name].spans:
        create_network(lab, name, state.node(hosts[0]), shared=True)
    for host in hosts:
        if lab.by_docker(name, host):
            create_docker_network(lab, name, state.node(host))
        elif not lab.networks[name].spans:
            create_network(lab, name, state.node(host), shared=False)


def _containers(state: State, host: str) -> dict[str, dict[str, Attached]]:
    """Start a host's containers one after another; return their addresses and name servers, by network."""
    if state.lab.of_podman(host):
        podman.prepare(state.lab, state.node(host))
    return {name: Container.of(state, name).start() for name, part in state.lab.containers.items() if part.host == host}


def _wait(state: State) -> None:
    lost: list[Reachability] | list[Resolved] = []

    def reached() -> bool:
        nonlocal lost
        lost = missing(state)
        return not lost

    if not until(reached, REACH_TIMEOUT_S):
        first, *more = lost
        words = f"within {REACH_TIMEOUT_S:g} s {first}" + (f" (and {len(more)} more failures)" if more else "")
        raise NetplugError("unavailable", words)


def down(state: State) -> None:
    """Remove a lab completely; parts that no longer exist are no error."""
    nodes = [state.node(name) for name in state.members]
    each(nodes, lambda node: node.stop())
    end_all(state.folder)
    for node in nodes:
        node.remove()
    shutil.rmtree(state.folder)
    # The last lab also removes the common folder.
    if state.folder.parent == DIR and not any(DIR.iterdir()):
        DIR.rmdir()
