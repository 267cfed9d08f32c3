"""The doctor's checks of etcd and of the other hosts, with a real etcd and real daemons."""

import base64
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from clustered import Hosts
from doctor_host import name_server
from etcd_server import Member, needs_etcd
from living import Living, settings_in, until
from test_cluster_questions import answers, id_of, meet

from netplug.cluster.questions import Reason, Unanswered
from netplug.drivers.codec import JsonObject
from netplug.insight.doctor import certificates, cluster, stores
from netplug.insight.doctor.subject import HostSubject, OneLook
from netplug.kernel.fake.kernel import FakeKernel

pytestmark = needs_etcd


@pytest.fixture(autouse=True)
def name_server_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with name_server() as address:
        monkeypatch.setenv("NETPLUG_DNS_UPSTREAM", address)
        yield


@pytest.fixture
def two(hosts: Hosts) -> tuple[Living, Living]:
    one, other = hosts.start(1), hosts.start(2)
    meet(one, other)
    return one, other


def examined(host: Living, check: str = "") -> list[dict[str, Any]]:
    """Return what a check of the doctor finds, or all, once it has ended in its time: a busy machine takes longer."""
    findings: list[dict[str, Any]] = []

    def all_checked() -> bool:
        findings[:] = [it for it in host.client.get("doctor")["findings"] if check in {"", it["check"]}]
        return not any(it["why"].startswith("no answer within") for it in findings)

    until(all_checked, "each check ends in its time")
    return findings


def found(host: Living, check: str) -> list[tuple[str, str]]:
    return [(it["verdict"], it["why"]) for it in examined(host, check)]


def test_healthy_cluster(two: tuple[Living, Living]) -> None:
    wrong = [it for it in examined(two[0]) if it["verdict"] not in {"ok", "note"}]
    assert wrong == []
    assert found(two[0], "cluster.hosts") == [("ok", "2 hosts are alive, and report no faults")]
    ((verdict, why),) = found(two[0], "store.shared")
    assert (verdict, "answers in" in why) == ("ok", True)
    assert [it[0] for it in found(two[0], "store.trust")] == ["note"]  # it has no user


def test_host_that_is_dead(two: tuple[Living, Living], etcd: Member) -> None:
    ident = id_of(two[1])
    two[1].stop()
    etcd.delete(f"cluster/alive/{ident}")
    ((verdict, why),) = found(two[0], "cluster.hosts")
    assert (verdict, why.startswith("host host-2 is not alive")) == ("warning", True)


async def ahead(_: JsonObject) -> JsonObject:
    return {"time": time.time() + 100}


async def a_little_behind(_: JsonObject) -> JsonObject:
    return {"time": time.time() - 7}


async def another_version(_: JsonObject) -> JsonObject:
    return {"version": "0.0.9"}


def test_clocks_that_differ(two: tuple[Living, Living]) -> None:
    assert found(two[0], "cluster.clocks") == [("ok", "the clocks of all hosts agree")]
    answers(two[1], "clock", ahead)
    ((verdict, why),) = found(two[0], "cluster.clocks")
    assert (verdict, why.startswith("the clock of host host-2 is 100 s ahead of")) == ("warning", True)
    answers(two[1], "clock", a_little_behind)
    ((verdict, why),) = found(two[0], "cluster.clocks")
    assert (verdict, why.startswith("the clock of host host-2 is 7 s behind")) == ("note", True)


def test_versions_that_differ(two: tuple[Living, Living]) -> None:
    answers(two[1], "facts", another_version)
    ((verdict, why),) = found(two[0], "cluster.versions")
    assert (verdict, why.startswith("host host-2 runs netplug 0.0.9, this host ")) == ("warning", True)


def test_daemon_too_old_to_be_asked(two: tuple[Living, Living]) -> None:
    def forget(daemon: Any) -> None:
        daemon.cluster.questions._handlers.clear()

    two[1].do_and_get(forget)
    ((verdict, why),) = found(two[0], "cluster.versions")
    assert (verdict, "cannot answer a question of kind 'facts'" in why) == ("warning", True)


@contextmanager
def slow(host: str, delay_s: float) -> Iterator[str]:
    """Hand on one connection after the other to etcd, its answers with a delay; yield the address."""
    name, _, port = host.rpartition(":")

    def serve() -> None:
        with suppress(OSError):  # it is shut down
            while True:
                near, _ = listening.accept()
                with near, socket.create_connection((name, int(port))) as far, suppress(ConnectionError):
                    hand_on(near, far)

    def hand_on(near: socket.socket, far: socket.socket) -> None:
        while ready := select.select([near, far], [], [])[0]:
            for one in ready:
                if not (data := one.recv(65536)):
                    return
                if one is far:
                    time.sleep(delay_s)
                (near if one is far else far).sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"etcd://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


async def test_etcd_that_is_slow(tmp_path: Path, etcd: Member) -> None:
    with slow(etcd.host, 0.12) as store:
        settings = settings_in(tmp_path, store=store, vtep="192.0.2.1")
        (found,) = await stores.shared(HostSubject(settings, OneLook(FakeKernel())))
    assert (found.verdict, "each start of a container" in found.why) == ("warning", True)


@pytest.mark.own_etcd
def test_etcd_that_is_full(hosts: Hosts, etcd: Member) -> None:
    host = hosts.start(1)
    etcd.refuse()
    ((verdict, why),) = found(host, "store.shared")
    assert (verdict, "NOSPACE" in why) == ("failure", True)
    etcd.refuse(full=False)
    assert [it[0] for it in found(host, "store.shared")] == ["ok"]


@pytest.mark.own_etcd
def test_etcd_that_is_down(hosts: Hosts, etcd: Member) -> None:
    host = hosts.start(1)
    etcd.stop()
    began = time.monotonic()
    ((verdict, why),) = found(host, "store.shared")
    assert time.monotonic() - began < 3
    assert (verdict, why.startswith(f"etcd at {etcd.host}")) == ("failure", True)
    assert found(host, "records.drift") == [("ok", "kernel and records agree")]


@pytest.mark.skipif(not which("openssl"), reason="needs openssl")
@pytest.mark.parametrize("days", [1, 9000])
def test_end_of_a_certificate(tmp_path: Path, days: int) -> None:
    path = tmp_path / "cert.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=etcd -days {days} -keyout {tmp_path}/key -out {path}"
    subprocess.run(make.split(), check=True, capture_output=True)
    said = subprocess.run(["openssl", "x509", "-enddate", "-noout", "-in", str(path)], check=True, capture_output=True)
    end = certificates.ends(path)
    assert end
    assert f"{end:%b} {end.day:>2} {end:%H:%M:%S %Y}" in said.stdout.decode()


def test_what_is_no_certificate(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(b"nothing") + b"\n-----END CERTIFICATE-----\n")
    assert certificates.ends(path) is None


def test_what_the_store_hinders_leads_to_the_check_of_the_store() -> None:
    """The hint of a question leads to the doctor, which must not send its reader to itself."""
    store = Unanswered(Reason.STORE, "b", "unavailable", "host b cannot be asked", hint="see netplug doctor")
    late = Unanswered(Reason.NOT_ALIVE, "b", "unavailable", "host b is not alive", hint="see netplug host ls")
    assert (cluster.mend(store), cluster.mend(late)) == ("see check store.shared", "see netplug host ls")
