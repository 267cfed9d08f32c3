"""A daemon with a shared store: it starts without it, and refuses to start with a wrong user."""

from pathlib import Path

import pytest
from clustered import kernel_of
from etcd_server import Member, free_ports, needs_etcd
from living import Living, settings_in, until
from structlog.testing import capture_logs

from netplug.errors import NetplugError

pytestmark = [needs_etcd, pytest.mark.own_etcd]


def test_a_daemon_opens_its_shared_store(tmp_path: Path, etcd: Member) -> None:
    with capture_logs() as logs:
        settings = settings_in(tmp_path, store=f"etcd://{etcd.host}", vtep="192.0.2.1")
        Living(settings, kernel=kernel_of(1)).start().stop()
    # Without a user, which is said.
    assert [entry["event"] for entry in logs if entry["log_level"] in {"warning", "error"}] == ["store.open_to_all"]


def test_a_store_that_asks_for_a_user_is_not_called_open(tmp_path: Path, etcd: Member) -> None:
    etcd.enable_authentication("admin")
    with capture_logs() as logs:
        settings = settings_in(tmp_path, store=f"etcd://root:admin@{etcd.host}", vtep="192.0.2.1")
        Living(settings, kernel=kernel_of(1)).start().stop()
    warnings = [entry["event"] for entry in logs if entry["log_level"] in {"warning", "error"}]
    assert warnings == ["store.password_in_clear"]


def test_without_its_shared_store_a_daemon_serves_its_own_networks(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with capture_logs() as logs:
        settings = settings_in(tmp_path, store=f"etcd://127.0.0.1:{port}", vtep="192.0.2.1")
        daemon = Living(settings, kernel=kernel_of(1))
        daemon.launch()
        until(lambda: any(entry["event"] == "store.unreachable" for entry in logs), "it says so")
        daemon.wait()
        assert daemon.client.post("networks", body={"name": "blue"})["name"] == "blue"
        daemon.stop()
    (warning,) = [entry for entry in logs if entry["event"] == "store.unreachable"]
    assert f"http://127.0.0.1:{port}: connection refused" in warning["reason"]


def test_a_daemon_with_a_wrong_user_does_not_start(tmp_path: Path, etcd: Member) -> None:
    etcd.enable_authentication("admin")
    daemon = Living(settings_in(tmp_path, store=f"etcd://root:wrong@{etcd.host}"))
    daemon.launch()
    daemon.join()
    assert isinstance(daemon.error, NetplugError)
    assert daemon.error.kind == "invalid"
    assert "user 'root' or the password is wrong" in daemon.error.message
    assert not daemon.settings.api_socket.exists()
