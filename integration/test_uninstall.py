"""`netplug uninstall` without systemd: with a daemon, with a dead one, and without records."""

from collections.abc import Callable

import pytest
from harness import CommandError, Host, Netplug, Snapshot, assert_same, snapshot
from harness.netplugd import COMMAND, PLUGIN_DIR, RUN_DIR
from harness.unpacked import lay_over

NewHost = Callable[..., Host]
CONF = "# of the site\nnameserver 192.0.2.53\n"


class Populated:
    """A host with two networks and a namespace, which asks for names, and what it was like before."""

    def __init__(self, host: Host) -> None:
        self.host = host
        lay_over(host)
        host.run(["sh", "-ec", "ip link set lo up; rm -f /etc/resolv.conf; cat > /etc/resolv.conf"], stdin=CONF)
        host.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
        host.run(["iptables", "-P", "FORWARD", "DROP"])  # so that there is a gate of ours in iptables
        host.run(["sh", "-ec", "ip netns add lab; ip -n lab link set lo up"])
        self.before = self.look()
        self.daemon = Netplug(host, "--docker-host", "none")
        self.daemon.cli("network", "create", "blue", "--subnet", "10.20.0.0/24")
        self.daemon.cli("network", "create", "wide", "--subnet", "fd00:20::/64")
        self.daemon.cli("attach", "blue", "--netns", "lab", "--name", "web", "--publish", "8080:80")
        self.daemon.cli("dns", "host", "on")
        assert host.output("sysctl", "-n", "net.ipv4.ip_forward") == "1"
        assert "NETPLUG-FORWARD" in host.output("iptables-save")

    def look(self) -> Snapshot:
        lines = self.host.output(
            "sh", "-c", "find /run/netplug /run/docker ! -type d 2>/dev/null; cat /etc/resolv.conf"
        )
        links = self.host.output("ip", "-n", "lab", "-br", "link")
        return {**snapshot(self.host), "files": tuple(lines.splitlines()), "lab": tuple(links.splitlines())}

    def uninstall(self, *arguments: str) -> str:
        env = {"STATE_DIR": str(self.daemon.state_dir), "RUN_DIR": RUN_DIR, "PLUGIN_DIR": PLUGIN_DIR}
        env = {f"NETPLUG_{name}": value for name, value in env.items()}
        return self.host.run([str(COMMAND), "uninstall", *arguments], env=env).stdout

    def refused(self, *arguments: str) -> str:
        with pytest.raises(CommandError) as failed:
            self.uninstall(*arguments)
        assert failed.value.code == 1
        return failed.value.stderr


@pytest.fixture
def populated(new_host: NewHost) -> Populated:
    return Populated(new_host("leaving"))


def test_daemon_and_all_that_it_made_go_and_records_stay(populated: Populated) -> None:
    assert "1 container is attached and would lose their network: web" in populated.refused()
    assert populated.daemon.drift() == ""
    populated.daemon.cli("detach", "blue", "--netns", "lab")
    said = populated.uninstall()
    assert populated.daemon.process
    populated.daemon.process.wait(30)
    assert "records, of networks: blue, wide (--purge removes them)" in said
    assert_same(populated.before, populated.look)
    assert "removed" not in populated.uninstall()
    populated.daemon.start()
    assert [it["name"] for it in populated.daemon.json("network", "ls")] == ["blue", "wide"]
    assert populated.daemon.drift() == ""
    populated.uninstall("--purge")
    assert not populated.daemon.state_dir.exists()
    assert_same(populated.before, populated.look)


def test_daemon_may_be_dead_and_containers_attached_if_that_is_forced(populated: Populated) -> None:
    populated.daemon.kill()
    there = populated.look()
    assert "1 container is attached and would lose their network: web" in populated.refused()
    assert_same(there, populated.look)
    populated.uninstall("--force", "--purge")
    assert_same(populated.before, populated.look)
    populated.uninstall("--force", "--purge")


def test_what_bears_our_mark_goes_without_records_too(populated: Populated) -> None:
    populated.daemon.kill()
    populated.host.run(["rm", "-r", str(populated.daemon.state_dir)])
    # Their values before are not known any more.
    populated.host.run(["sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0"])
    populated.uninstall()
    assert_same(populated.before, populated.look)
