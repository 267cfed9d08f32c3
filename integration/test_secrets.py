"""Secrets that are planted in a daemon's settings and environment show nowhere: a real daemon, a real etcd that asks.

Each secret is looked for in all that anybody can read: the log at its most verbose, what commands say and refuse, the
list of processes, files other than those in which the secret is kept, the page, the metrics, the store and the archive
for a bug report. `tests/test_secrets.py` and `tests/test_doctor_support.py` have the single places.
"""

import json
import socket
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from harness import Host, Netplug, namespace, wait_until
from harness.cluster import CLIENT_PORT, Cluster, needs_etcd
from harness.host import CommandError
from harness.netns import open_socket

from netplug.insight.http import COMPARISONS, READABLE

pytestmark = needs_etcd

PASSWORD, KEY, TOKEN, REGISTRY = "pa55w0rd-of-etcd", "k3y-of-tls", "t0ken-of-ci", "pa55-of-registry"
PLANTED = (PASSWORD, KEY, TOKEN, REGISTRY)
ENVIRONMENT = {
    "CI_TOKEN": TOKEN,
    "DOCKER_AUTH_CONFIG": json.dumps({"auths": {"registry.example": {"auth": REGISTRY}}}),
    "HTTPS_PROXY": f"http://user:{REGISTRY}@proxy.example:3128",
}
PORT = 9820
COMMANDS = ("diff", "doctor", "attach none --netns none", "network create blue", "network rm nothing")
READ = (*READABLE, *COMPARISONS, "/v1/settings", "/v1/ipam/audit", "/v1/firewall")


@pytest.fixture(scope="module")
def member() -> Iterator[tuple[Cluster, Host, str]]:
    """A host whose etcd asks for a user; and the store's URL with the password."""
    with ExitStack() as stack:
        cluster = Cluster(stack)
        host, wire = cluster.prepare()
        for words in (f"user add root:{PASSWORD}", "user grant-role root root", "auth enable"):
            with suppress(CommandError):  # the role may be there
                cluster.etcd.ctl("role", "add", "root")
            cluster.etcd.ctl(*words.split())
        host.path("/run/key.pem").write_text(f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----\n")
        yield cluster, host, f"etcd://root:{PASSWORD}@{wire.right}:{CLIENT_PORT}"


def said(host: Host, *argv: str) -> str:
    done = host.run(argv, check=False, env={"NETPLUG_RUN_DIR": "/run/netplug"})
    return done.stdout + done.stderr


def processes(host: Host) -> str:
    """Return what every user of the host sees of its processes (proc(5), cmdline)."""
    found = []
    for path in host.path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(found)


def files(folder: Path) -> Mapping[str, str]:
    return {
        str(path): path.read_bytes().decode("latin-1")
        for path in folder.rglob("*")
        if path.is_file() and path.name != "http-token"
    }


def archive(host: Host, netplug: Netplug) -> Mapping[str, str]:
    """Return the files of the archive for a bug report."""
    out = said(host, "sh", "-c", f"cd {host.dir} && {netplug.executable} doctor --support --json")
    path = Path(json.loads(out)["archive"]["path"])
    with tarfile.open(host.path(path)) as tar:
        found = {it.name: tar.extractfile(it) for it in tar.getmembers()}
        texts = {f"archive {name}": file.read().decode() for name, file in found.items() if file}
    host.path(path).unlink()
    return texts


def page(host: Host, at: str, path: str, token: str) -> str:
    """Return the answer of the page, with its head."""
    with open_socket(host.netns, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        sock.connect((at, PORT))
        head = f"GET {path} HTTP/1.1\r\nHost: {at}:{PORT}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode())
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode(errors="replace")


def all_outputs(cluster: Cluster, host: Host, netplug: Netplug, at: str) -> dict[str, str]:
    token = (netplug.state_dir / "http-token").read_text().strip()
    outputs = {words: said(host, str(netplug.executable), *words.split()) for words in COMMANDS}
    for path in sorted((*READABLE, *COMPARISONS, "/metrics", "/", "/nothing")):
        outputs[f"page {path}"] = page(host, at, path, token)
    outputs["page without the token"] = page(host, at, "/v1/graph", "wrong")
    for path in READ:
        outputs[f"API {path}"] = json.dumps(netplug.client.get(*path.removeprefix("/v1/").split("/")))
    outputs["processes"] = processes(host)
    outputs["the daemon's log"] = netplug.log.read_text()
    outputs |= files(netplug.state_dir) | files(host.path("/run/netplug"))
    outputs |= archive(host, netplug)
    env = {"ETCDCTL_API": "3", "ETCDCTL_USER": f"root:{PASSWORD}"}
    command = ["etcdctl", f"--endpoints=127.0.0.1:{CLIENT_PORT}", "get", "--prefix", "/"]
    outputs["etcd"] = cluster.router.run(command, env=env).stdout
    return outputs


def shown(outputs: Mapping[str, str], *secrets: str) -> list[tuple[str, str]]:
    return [(where, secret) for where, text in outputs.items() for secret in secrets if secret in text]


@pytest.mark.parametrize("given", ["in the URL, by a flag", "in the environment", "in the file of settings"])
def test_planted_secrets_show_nowhere(member: tuple[Cluster, Host, str], given: str) -> None:
    cluster, host, url = member
    bare = url.replace(f"root:{PASSWORD}@", "")
    settings = host.path("/run/netplug.toml")
    settings.write_text("")
    settings.chmod(0o600)
    env = {**ENVIRONMENT, "NETPLUG_CONFIG": "/run/netplug.toml"}
    store = url
    if given == "in the environment":
        store, env = bare, env | {"NETPLUG_ETCD_USER": "root", "NETPLUG_ETCD_PASSWORD": PASSWORD}
    elif given == "in the file of settings":
        store = bare
        settings.write_text(f'etcd_user = "root"\netcd_password = "{PASSWORD}"\n')
    vtep = _uplink(host)
    args = (
        "--store",
        store,
        "--docker-host",
        "none",
        "--vtep",
        vtep,
        "--http",
        f"{vtep}:{PORT}",
        "--log-level",
        "debug",
    )
    netplug = Netplug(host, *args, env=env)
    try:
        wait_until(lambda: "page.listening" in netplug.log.read_text(), 20, "the page")
        netplug.cli("network", "create", "blue", "--cluster")
        with namespace(host) as place:
            place.attach(netplug, "blue", "--name", "web", "--publish", "8080:80")
            outputs = all_outputs(cluster, host, netplug, vtep)
            token = (netplug.state_dir / "http-token").read_text().strip()
            place.detach(netplug, "blue")
        netplug.cli("network", "rm", "blue")
    finally:
        netplug.stop()
    outputs["the daemon's log"] += netplug.log.read_text()
    assert shown(outputs, *PLANTED, token) == []
    # They would have been seen.
    assert "HTTP/1.1 401" in outputs["page without the token"]
    assert "network.defined" in outputs["the daemon's log"]
    assert "blue" in outputs["etcd"]
    assert '"version"' in outputs["page /v1/version"]
    assert "netplug_" in outputs["page /metrics"]
    assert f"serve --state-dir {netplug.state_dir}" in outputs["processes"]
    assert any(name.endswith("netplug.db") for name in outputs)


def _uplink(host: Host) -> str:
    (found,) = (it for it in json.loads(host.output("ip", "-j", "-4", "addr")) if it["ifname"].startswith("eth"))
    return str(found["addr_info"][0]["local"])


MISTAKES = {
    "unknown key": f'registry_password = "{REGISTRY}"\n',
    "no TOML": f'registry_password = "{REGISTRY}\n',
    "no text": f'etcd_password = ["{PASSWORD}"]\n',
    "without a user": f'store = "etcd://192.0.2.1:2379"\netcd_password = "{PASSWORD}"\n',
    "URL of a store": f'store = "etcd://root:{PASSWORD}@"\n',
    "URL of another store": f'store = "postgres://root:{PASSWORD}@db/x"\n',
    "URL of Docker": f'docker_host = "tcp://root:{PASSWORD}@docker:2375"\n',
    "URL of the page": f'http = "http://root:{PASSWORD}@127.0.0.1:9820/"\n',
    "URL of a resolver": f'dns_upstream = ["https://root:{PASSWORD}@dns.example/"]\n',
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_settings_that_are_refused_are_not_shown(member: tuple[Cluster, Host, str], mistake: str) -> None:
    _, host, _ = member
    host.path("/run/netplug.toml").write_text(MISTAKES[mistake])
    command = [str(Netplug.executable), "serve", "--state-dir", str(host.dir / "refused"), "--run-dir", "/run/refused"]
    done = host.run(command, check=False, env={"NETPLUG_CONFIG": "/run/netplug.toml"}, timeout_s=30)
    assert done.returncode == 2, done.stderr
    assert shown({"out": done.stdout, "err": done.stderr}, *PLANTED) == []


def test_wrong_password_is_not_shown(member: tuple[Cluster, Host, str]) -> None:
    _, host, url = member
    wrong = "wr0ng-pa55"
    args = ["--state-dir", str(host.dir / "wrong"), "--run-dir", "/run/wrong", "--plugin-dir", "/run/wrong"]
    command = [
        str(Netplug.executable),
        "serve",
        "--store",
        url.replace(PASSWORD, wrong),
        *args,
        "--vtep",
        _uplink(host),
    ]
    done = host.run(command, check=False, timeout_s=60)
    assert done.returncode, done.stdout
    assert "password is wrong" in done.stdout + done.stderr
    assert wrong not in done.stdout + done.stderr
