"""`netplug lab` as a user types it: a whole lab up, looked at, broken, mended, and down without a trace."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from harness import wait_until
from harness.cluster import needs_etcd
from harness.netplugd import COMMAND

EXAMPLES = Path(__file__).parent.parent / "examples" / "lab"
TIMEOUT_S = 100
needs_podman = pytest.mark.skipif(which("podman") is None, reason="needs podman (make setup)")

Lab = Callable[..., subprocess.CompletedProcess[str]]


def run(base: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `netplug lab` with labs of this test alone."""
    env = os.environ | {"NETPLUG_LAB_DIR": str(base)}
    return subprocess.run(
        [str(COMMAND), "lab", *args],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=env,
        timeout=TIMEOUT_S,
    )


def told(lab: Lab, *args: str, code: int = 0) -> Any:
    """Run a command with `--json` and return what it printed."""
    done = lab(*args, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def traces(mark: str) -> list[str]:
    """Processes, mounts and control groups that name something."""
    found = [line for line in Path("/proc/self/mounts").read_text().splitlines() if mark in line]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/*{mark}*")]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(path.read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "labs"
    for path in (tmp_path / "labs").glob("*/lab.json"):
        run(tmp_path / "labs", "down", "--lab", path.parent.name)


@pytest.fixture
def lab(base: Path) -> Lab:
    return lambda *args: run(base, *args)


def renamed(example: str, folder: Path, name: str) -> Path:
    """A copy of an example under another name, so that runs at the same time do not meet."""
    path = folder / f"{name}.yaml"
    path.write_text((EXAMPLES / example).read_text().replace(f"name: {example.removesuffix('.yaml')}", f"name: {name}"))
    return path


def test_lab_of_two_hosts_from_up_to_down(lab: Lab, base: Path, tmp_path: Path) -> None:
    name = f"two{os.getpid()}"
    found = told(lab, "up", str(renamed("one-switch.yaml", tmp_path, name)))
    assert [host["name"] for host in found["hosts"]] == ["a", "b"]
    assert [host["differences"] for host in found["hosts"]] == [0, 0]
    assert len(found["reach"]) == 8
    assert all(it["answers"] for it in found["reach"])
    assert {(it["source"], it["name"], it["resolves"], it["reason"]) for it in found["names"]} == {
        ("web", "bare.blue", True, ""),
        ("bare", "web.blue", True, ""),
        ("one", "two.green", True, ""),
        ("two", "one.green", True, ""),
    }
    addresses = {it["name"]: it["addresses"] for it in found["containers"]}
    assert told(lab, "ls") == [name]

    # Each host is one, with its own name, link and daemons; containers are where the file has them.
    assert lab("exec", "a", "--", "hostname").stdout == "a\n"
    assert "mtu 1400" in lab("exec", "b", "--", "ip", "link", "show", "eth0").stdout
    assert "rate 100Mbit" in lab("exec", "b", "--", "tc", "qdisc", "show", "dev", "eth0").stdout
    assert lab("exec", "a", "--", "docker", "ps", "--format", "{{.Names}}").stdout == "web\n"
    assert addresses["two"]["green"][0] in lab("exec", "two", "--", "ip", "-4", "addr").stdout
    assert lab("exec", "b", "--", "busybox", "wget", "-qO-", "http://198.18.0.1:8080/").stdout == "hello from netplug\n"
    assert lab("exec", "a", "--", "sh", "-c", "exit 7").returncode == 7
    assert f'c-web["web<br/>docker<br/>{addresses["web"]["blue"][0]}' in lab("graph").stdout
    again = lab("up", str(tmp_path / f"{name}.yaml"))
    assert (again.returncode, again.stderr) == (
        1,
        f"netplug: lab '{name}' is up (netplug lab down --lab {name})\n",
    )

    assert lab("down").returncode == 0
    assert lab("ls").stdout == ""
    assert list(base.iterdir()) == []
    assert traces(name) == []


def test_faults_do_what_they_say_and_are_mended(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / f"faults{os.getpid()}.yaml"
    path.write_text("hosts: {a: {}, b: {}, c: {}}\n")
    assert lab("up", str(path)).returncode == 0

    def reaches(one: str, other: str, size: int = 56) -> bool:
        address = {"a": "198.18.0.1", "b": "198.18.0.2", "c": "198.18.0.3"}[other]
        return lab("exec", one, "--", "busybox", "ping", "-c1", "-W1", f"-s{size}", address).returncode == 0

    def host(name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(it for it in told(lab, "status")["hosts"] if it["name"] == name)
        return found

    assert reaches("a", "b")
    assert lab("fault", "cut", "a", "b").returncode == 0
    assert not reaches("a", "b")
    assert reaches("a", "c")
    assert lab("fault", "cut", "c").returncode == 0
    assert not reaches("b", "c")
    assert lab("fault", "mend").returncode == 0
    assert reaches("a", "b")
    assert reaches("b", "c")

    assert lab("fault", "drop", "1000").returncode == 0
    assert reaches("a", "b", 972)
    assert not reaches("a", "b", 973)

    for kind, name in (("kill", "a"), ("stop", "b"), ("hang", "c")):
        assert lab("fault", kind, name).returncode == 0
    assert [host(name)["processes"]["netplug"] for name in "abc"] == [False, False, True]
    assert [host(name)["differences"] for name in "abc"] == [None, None, None]
    assert told(lab, "status")["faults"] == ["drop 1000", "kill a", "stop b", "hang c"]
    assert lab("fault", "mend").returncode == 0
    assert [host(name)["differences"] for name in "abc"] == [0, 0, 0]
    assert told(lab, "status")["faults"] == []
    assert reaches("a", "b", 1400)

    for wrong, words in (
        (("cut",), "fault cut takes HOST [OTHER]"),
        (("cut", "z"), "has no host 'z' (it has a, b, c)"),
        (("drop", "lots"), "not 'lots'"),
        (("wipe", "a"), "fault wipe takes etcd"),
        (("melt",), "unknown fault 'melt'"),
    ):
        done = lab("fault", *wrong)
        assert done.returncode in {1, 2}
        assert words in done.stderr
    assert lab("down").returncode == 0


def test_lab_that_cannot_be_built_leaves_nothing(lab: Lab, base: Path, tmp_path: Path) -> None:
    name = f"bad{os.getpid()}"
    path = tmp_path / f"{name}.yaml"
    path.write_text("hosts: {a: {}}\nnetworks: {blue: {subnets: [10.1.0.0/24], options: {colour: red}}}\n")
    done = lab("up", str(path))
    assert done.returncode == 1
    assert "colour" in done.stderr.splitlines()[-1]
    assert list(base.iterdir()) == []
    assert traces(name) == []


def test_host_that_ended_is_told_and_nothing_runs_in_its_place(lab: Lab, base: Path, tmp_path: Path) -> None:
    """Its number may be another process's by then, after a reboot for one."""
    name = f"ended{os.getpid()}"
    path = tmp_path / f"{name}.yaml"
    path.write_text("hosts: {a: {}, b: {}}\nnetworks: {n: {}}\ncontainers: {c: {host: a, networks: [n]}}\n")
    assert lab("up", str(path)).returncode == 0
    state = json.loads((base / name / "lab.json").read_text())
    os.kill(state["members"]["a"]["pid"], signal.SIGKILL)
    # As a process that has the number now: this one.
    state["members"]["b"] |= {"pid": os.getpid()}
    (base / name / "lab.json").write_text(json.dumps(state))
    for host in ("a", "b", "c"):
        done = lab("exec", host, "--", "ip", "link", "add", "wrong", "type", "dummy")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"host '{'a' if host == 'c' else host}' has ended (netplug lab down)" in done.stderr
    assert lab("fault", "cut", "a").returncode == 0
    assert [host["up"] for host in told(lab, "status")["hosts"]] == [False, False]
    # The one that nobody remembers any more ends too.
    assert lab("down").returncode == 0
    assert list(base.iterdir()) == []
    assert traces(name) == []


SILENT = "nft 'table inet silent { chain out { type filter hook output priority 0; udp dport 53 drop; }; }'; sleep 600"
"""What a container runs that can ask no name server."""


def test_names_that_do_not_resolve_are_told(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / f"names{os.getpid()}.yaml"
    nets = "{n: {subnets: [10.94.1.0/24]}, quiet: {subnets: [10.94.2.0/24], options: {dns: off}}}"
    both = "{host: a, networks: [n, quiet]}"
    path.write_text(f"hosts: {{a: {{}}}}\nnetworks: {nets}\ncontainers: {{one: {both}, two: {both}}}\n")
    found = told(lab, "up", str(path))
    assert len(found["reach"]) == 4
    assert [(it["network"], it["name"], it["resolves"]) for it in found["names"]] == [
        ("n", "two.n", True),
        ("n", "one.n", True),
    ]

    assert lab("fault", "stop", "a").returncode == 0
    said = lab("status")
    assert said.returncode == 1
    assert said.stdout.splitlines()[-4:] == [
        "4 of 4 paths between containers work",
        "0 of 2 names resolve",
        "  one does not resolve two.n in n: no answer from 10.94.1.1",
        "  two does not resolve one.n in n: no answer from 10.94.1.1",
    ]
    assert lab("fault", "mend").returncode == 0
    assert lab("status").returncode == 0

    # Another of the same name: each is told two addresses.
    again = ("netplug", "attach", "n", "--netns", "three", "--name", "two", "--ip", "10.94.1.77")
    assert lab("exec", "a", "--", "ip", "netns", "add", "three").returncode == 0
    assert lab("exec", "a", "--", *again).returncode == 0
    own = next(it["addresses"]["n"][0] for it in found["containers"] if it["name"] == "two")
    wrong = [it for it in told(lab, "status", code=1)["names"] if not it["resolves"]]
    assert [(it["source"], it["name"], it["reason"]) for it in wrong] == [
        ("one", "two.n", f"10.94.1.1 answers {own}, 10.94.1.77, not {own}")
    ]
    assert lab("down").returncode == 0


IMPATIENT = """
import sys
from netplug.cli import main
from netplug.lab import build
build.REACH_TIMEOUT_S = 3
sys.exit(main(["lab", "up", sys.argv[1]]))
"""


def test_lab_whose_names_do_not_resolve_is_not_up(base: Path, tmp_path: Path) -> None:
    """One container asks in vain, though all addresses answer."""
    name = f"mute{os.getpid()}"
    path = tmp_path / f"{name}.yaml"
    one = json.dumps({"host": "a", "networks": ["n"], "command": ["sh", "-c", SILENT]})
    containers = f"{{one: {one}, two: {{host: a, networks: [n]}}}}"
    path.write_text(f"hosts: {{a: {{}}}}\nnetworks: {{n: {{subnets: [10.94.1.0/24]}}}}\ncontainers: {containers}\n")
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, str(path)],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"NETPLUG_LAB_DIR": str(base)},
        timeout=TIMEOUT_S,
    )
    words = "within 3 s one does not resolve 'two.n' in network 'n': no answer from 10.94.1.1"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"netplug: {words}")
    assert list(base.iterdir()) == []
    assert traces(name) == []


@needs_podman
def test_lab_with_containers_of_podman(lab: Lab, base: Path, tmp_path: Path) -> None:
    """A plain `podman` on the host knows them; nothing of theirs is among the machine's own files."""
    name = f"pod{os.getpid()}"
    path = tmp_path / f"{name}.yaml"
    path.write_text(
        """hosts: {a: {}}
networks: {n: {subnets: [10.94.1.0/24, "fd00:94:1::/64"]}, m: {subnets: [10.94.2.0/24]}}
containers:
  web: {host: a, runtime: podman, networks: [n], ip: [10.94.1.77], publish: ["8080:80"], command: [httpd, -f, -h, /www]}
  both: {host: a, runtime: podman, networks: [m, n]}
  bare: {host: a, networks: [n]}
"""
    )
    found = told(lab, "up", str(path))
    assert [it["addresses"]["n"][0] for it in found["containers"] if it["name"] == "web"] == ["10.94.1.77"]
    assert {(it["source"], it["name"]) for it in found["names"] if it["resolves"]} == {
        (one, f"{other}.n") for one in ("web", "both", "bare") for other in ("web", "both", "bare") if one != other
    }
    assert [host["differences"] for host in found["hosts"]] == [0]
    listed = lab("exec", "a", "--", "podman", "ps", "--format", "{{.Names}}").stdout.split()
    assert sorted(listed) == ["both", "web"]
    for folder in ("/etc/containers", "/var/lib/cni", "/var/lib/containers"):
        assert lab("exec", "a", "--", "mountpoint", "-q", folder).returncode == 0, folder
    assert lab("exec", "a", "--", "sh", "-c", "ls /run/libpod/locks | wc -l").stdout == "2\n"
    # By libc and what podman wrote into resolv.conf.
    assert "(10.94.1.77)" in lab("exec", "both", "--", "ping", "-4", "-c1", "-W2", "web").stdout
    for page in ("http://10.94.1.77/", "http://198.18.0.1:8080/"):
        assert lab("exec", "bare", "--", "busybox", "wget", "-qO-", page).stdout == "hello from netplug\n"
    link = lab("exec", "both", "--", "cat", "/sys/class/net/eth1/address").stdout.strip()
    (end,) = [it for it in ends(lab) if (it["name"], it["network"]) == ("both", "n")]
    assert (end["interface"], end["mac"], end["front_end"]) == ("eth1", link, "cni")
    assert lab("down").returncode == 0
    assert list(base.iterdir()) == []
    assert traces(name) == []


@needs_podman
def test_the_file_that_the_docs_show_comes_up(lab: Lab, base: Path, tmp_path: Path) -> None:
    shown = (Path(__file__).parents[1] / "docs" / "lab.md").read_text()
    path = tmp_path / f"shown{os.getpid()}.yaml"
    path.write_text(shown.partition("```yaml\nname: two")[2].partition("```")[0])
    found = told(lab, "up", str(path))
    assert sorted(it["name"] for it in found["containers"]) == ["db", "shell", "shop", "web"]
    assert all(it["answers"] for it in found["reach"])
    unknown = lab("exec", "nope", "--", "true")
    assert "no host or container 'nope' (hosts: a, b, etcd; containers: web, db, shop, shell)" in unknown.stderr
    assert lab("down").returncode == 0
    assert list(base.iterdir()) == []


def ends(lab: Lab) -> Any:
    """What `netplug ps` of host a says."""
    return json.loads(lab("exec", "a", "--", "netplug", "ps", "--json").stdout)


@needs_etcd
@needs_podman
def test_overlay_of_three_hosts_outlives_its_faults(lab: Lab, tmp_path: Path) -> None:
    """Traffic needs neither daemons nor etcd; what was cut comes back; nothing differs afterwards."""
    assert lab("up", str(renamed("three-hosts.yaml", tmp_path, f"three{os.getpid()}"))).returncode == 0
    assert "hello from netplug" in lab("exec", "c", "--", "busybox", "wget", "-qO-", "http://198.18.0.1:8080/").stdout

    def lost() -> set[tuple[str, str]]:
        found = json.loads(lab("status", "--json").stdout)["reach"]
        return {(it["source"], it["target"]) for it in found if not it["answers"]}

    for fault in (("kill", "a"), ("hang", "b"), ("kill", "etcd")):
        assert lab("fault", *fault).returncode == 0
    assert lost() == set()
    # Names need the daemon of the asker's host, and nothing else.
    found = told(lab, "status", code=1)["names"]
    assert {it["source"] for it in found if not it["resolves"]} == {"web", "beside", "pod", "shop"}
    assert {(it["source"], it["target"]) for it in found if it["resolves"]} >= {
        ("bare", "web"),
        ("bare", "beside"),
        ("bare", "pod"),
        ("bare", "shop"),
    }
    assert lab("fault", "cut", "a", "c").returncode == 0
    assert lost() == {("beside", "bare"), ("bare", "beside"), ("web", "bare"), ("bare", "web")}
    assert lab("fault", "mend").returncode == 0
    assert lab("fault", "wipe", "etcd").returncode == 0
    assert lost() == set()

    def settled() -> bool:
        found = lab("status", "--json")
        differences = [it["differences"] for it in json.loads(found.stdout)["hosts"]]
        return (found.returncode, differences) == (0, [0, 0, 0, None])

    wait_until(settled, 60, "no differences on any host, and all names")
    assert lost() == set()
    assert lab("down").returncode == 0


@needs_etcd
def test_overlay_of_ipv6_over_ipv6(lab: Lab, tmp_path: Path) -> None:
    found = told(lab, "up", str(renamed("ipv6-underlay.yaml", tmp_path, f"six{os.getpid()}")))
    assert [(it["address"][:9], it["answers"]) for it in found["reach"]] == [("fd00:94:1", True)] * 2
    # Jumbo frames underneath, less the tunnel's 70 bytes.
    assert "mtu 8930" in lab("exec", "one", "--", "ip", "link", "show", "eth0").stdout
    fdb = lab("exec", "a", "--", "bridge", "fdb", "show").stdout
    assert "dst fd00:1ab::2" in fdb
    assert lab("down").returncode == 0
