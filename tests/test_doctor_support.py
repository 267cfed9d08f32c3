"""The archive for a bug report: what is in it, and what is not."""

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doctor_host import name_server
from living import living, settings_in

from netplug.cli import OK, UNREACHABLE, main
from netplug.insight.doctor.support import chosen, settings_of, without_secrets

SECRETS = ("pa55-of-url", "pa55-of-settings", "k3y-of-tls", "v4lue-of-label", "v4lue-of-env")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let secrets be everywhere, and the settings of a doctor without a daemon be those of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETPLUG_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NETPLUG_PLUGIN_DIR", str(tmp_path / "plugins"))
    monkeypatch.setenv("SOME_TOKEN", "v4lue-of-env")
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nk3y-of-tls\n-----END PRIVATE KEY-----\n")
    for name in ("ca", "cert"):
        (tmp_path / f"{name}.pem").write_text("k3y-of-tls")
    with name_server() as address:
        monkeypatch.setenv("NETPLUG_DNS_UPSTREAM", address)
        yield


def support(folder: Path, capsys: pytest.CaptureFixture[str], wanted: int) -> dict[str, str]:
    """Return the text of the files in the archive."""
    capsys.readouterr()
    code = main(["doctor", "--support", "--json", "--run-dir", str(folder / "run")])
    archive = json.loads(capsys.readouterr().out)["archive"]
    assert code == wanted
    path = Path(archive["path"])
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as tar:
        found = {it.name.partition("/")[2]: tar.extractfile(it) for it in tar.getmembers()}
        texts = {name: file.read().decode() for name, file in found.items() if file}
    assert {it["name"] for it in archive["files"]} == set(texts)
    path.unlink()
    return texts


def assert_no_secret(texts: dict[str, str]) -> None:
    assert [(name, secret) for name, text in texts.items() for secret in SECRETS if secret in text] == []


def test_archive_of_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network: dict[str, Any] = {
        "name": "blue",
        "subnets": [{"subnet": "10.1.0.0/24"}],
        "labels": {"a": "v4lue-of-label"},
    }
    with living(tmp_path) as daemon:
        daemon.client.post("networks", body=network)
        texts = support(tmp_path, capsys, OK)
    assert_no_secret(texts)
    wanted = {"doctor", "versions", "settings", "networks", "endpoints", "diff", "firewall", "pools", "audit"}
    assert {f"{name}.json" for name in wanted} <= set(texts)
    assert {"host/links.txt", "host/addresses.txt", "host/routes4.txt", "host/rules4.txt"} <= set(texts)
    assert json.loads(texts["networks.json"])["networks"][0]["name"] == "blue"
    assert "labels" not in texts["networks.json"]


def test_archive_without_a_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "STORE": "etcd://192.0.2.1:2379",
        "ETCD_USER": "np",
        "ETCD_PASSWORD": "pa55-of-settings",
        **{f"ETCD_{name.upper()}": str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")},
        "VTEP": "192.0.2.9",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"NETPLUG_{name}", value)
    texts = support(tmp_path, capsys, UNREACHABLE)
    assert_no_secret(texts)
    settings = json.loads(texts["settings.json"])
    assert (settings["etcd_user"], settings["etcd_password"]) == ("***", "***")
    assert settings["etcd_key"] == str(tmp_path / "key.pem")


def test_password_in_the_url_of_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETPLUG_STORE", "etcd://np:pa55-of-url@192.0.2.1:2379")
    texts = support(tmp_path, capsys, UNREACHABLE)
    assert_no_secret(texts)
    assert json.loads(texts["settings.json"])["store"] == "etcd://***@192.0.2.1:2379"


def test_output_says_what_is_in_it_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--support", "--run-dir", str(tmp_path / "run")])
    out = capsys.readouterr().out
    (path,) = re.findall(r"^written to (.*)$", out, re.MULTILINE)
    assert Path(path).exists()
    assert "host/links.txt" in out
    assert "no passwords, keys, tokens, environment variables and labels" in out


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("etcd://np:x@db:2379", "etcd://***@db:2379"),
        ("NETPLUG_ETCD_PASSWORD=hunter2 --x", "NETPLUG_ETCD_PASSWORD=*** --x"),
        ("api_key: abc, b", "api_key: ***, b"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nb", "a\n***\nb"),
        ("-----BEGIN PRIVATE KEY-----\nMII that was cut", "***"),
        ("10.1.0.0/24 dev eth0", "10.1.0.0/24 dev eth0"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, left: str) -> None:
    assert without_secrets(text) == left


def test_fields_that_users_fill_are_left_out() -> None:
    value = {"networks": [{"name": "blue", "labels": {"a": "b"}, "Env": ["A=b"]}]}
    assert chosen(value) == {"networks": [{"name": "blue"}]}


def test_each_setting_is_shown(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert settings_of(settings).keys() == type(settings).model_fields.keys()
