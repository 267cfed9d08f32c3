"""`netplug doctor`: what it prints and how it ends, with a daemon and without."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from doctor_host import name_server
from living import living

from netplug.cli import NO, OK, UNREACHABLE, main
from netplug.kernel.fake.kernel import FakeKernel

FIELDS = ["check", "verdict", "why", "mend"]


@pytest.fixture(autouse=True)
def state_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the settings of a doctor without a daemon be those of the test."""
    for name in ("state", "plugins"):
        monkeypatch.setenv(f"NETPLUG_{name.removesuffix('s').upper()}_DIR", str(tmp_path / name))
    monkeypatch.setenv("NETPLUG_CONFIG", str(tmp_path / "netplug.toml"))
    (tmp_path / "netplug.toml").write_text("")
    with name_server() as address:
        monkeypatch.setenv("NETPLUG_DNS_UPSTREAM", address)
        yield


def doctor(folder: Path, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["doctor", *args, "--run-dir", str(folder / "run")])
    return code, capsys.readouterr().out


def findings(folder: Path, capsys: pytest.CaptureFixture[str], wanted: int) -> list[dict[str, str]]:
    code, out = doctor(folder, capsys, "--json")
    assert code == wanted, out
    report = json.loads(out)
    assert list(report) == ["host", "version", "verdict", "findings"]
    assert all(list(it) == FIELDS for it in report["findings"])
    found: list[dict[str, str]] = report["findings"]
    return found


def test_healthy_host_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with living(tmp_path):
        code, out = doctor(tmp_path, capsys)
        assert code == OK
        assert out.endswith("checks well (--all shows them)\n")
        assert "failure" not in out
        assert {it["verdict"] for it in findings(tmp_path, capsys, OK)} <= {"ok", "note"}
        assert len(doctor(tmp_path, capsys, "--all")[1].splitlines()) > len(out.splitlines()) + 8


def test_fault_is_shown_with_reason_and_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = FakeKernel()
    kernel.health.lacks = ("links of kind bridge",)
    with living(tmp_path, kernel=kernel):
        code, out = doctor(tmp_path, capsys)
        assert code == NO
        lines = out.splitlines()
        assert lines[0].split() == ["VERDICT", "CHECK", "WHY", "MEND"]
        assert lines[1].split()[:2] == ["failure", "kernel.features"]
        assert "lacks links of kind bridge" in lines[1]
        assert lines[-1].startswith("1 failure, ")


def test_without_a_daemon_its_absence_is_first_and_the_host_is_examined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(tmp_path, capsys, UNREACHABLE)
    assert found[0]["check"] == "daemon"
    assert found[0]["verdict"] == "failure"
    assert found[0]["why"] == f"no daemon answers at {tmp_path}/run/netplug.sock"
    assert {"kernel.features", "resources.disk", "store.local"} <= {it["check"] for it in found}


def test_daemon_that_cannot_start_for_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "netplug.toml").write_text('stroe = "sqlite"\n')
    found = findings(tmp_path, capsys, UNREACHABLE)
    assert "the daemon cannot start: unknown setting 'stroe'" in found[1]["why"]
    assert found[1]["check"] == "daemon"


def test_records_of_a_stopped_daemon_are_read_and_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with living(tmp_path) as daemon:
        daemon.client.post("networks", body={"name": "blue", "subnets": [{"subnet": "10.1.0.0/24"}]})
    before = {it.name: it.read_bytes() for it in (tmp_path / "state").iterdir()}
    found = {it["check"]: it for it in findings(tmp_path, capsys, UNREACHABLE)}
    assert found["store.local"]["why"].endswith("netplug.db is undamaged: 1 networks, 0 endpoints")
    assert {it.name: it.read_bytes() for it in (tmp_path / "state").iterdir()} == before


def test_database_that_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with living(tmp_path) as daemon:
        daemon.client.post("networks", body={"name": "blue", "subnets": [{"subnet": "10.1.0.0/24"}]})
    path = tmp_path / "state/netplug.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)
    found = {it["check"]: it for it in findings(tmp_path, capsys, UNREACHABLE)}
    assert (found["store.local"]["verdict"], "netplug.db is damaged" in found["store.local"]["why"]) == (
        "failure",
        True,
    )


def test_daemon_that_hangs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with living(tmp_path) as daemon, daemon.held():
        found = findings(tmp_path, capsys, UNREACHABLE)
    assert "did not answer in 3 s" in found[0]["why"]


def test_daemon_of_another_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with living(tmp_path):
        assert findings(tmp_path, capsys, OK)[0]["check"] == "daemon.version"
        monkeypatch.setattr("netplug.cli.doctor.__version__", "99.0")
        first = findings(tmp_path, capsys, NO)[0]
    assert (first["verdict"], first["why"].endswith(", this command 99.0")) == ("warning", True)


def test_daemon_of_a_version_without_a_doctor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netplug.insight.insight.Insight.routes", ())
    with living(tmp_path):
        found = findings(tmp_path, capsys, NO)
    assert found[0]["why"].startswith("the daemon is of a version without a doctor")
