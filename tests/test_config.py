"""Settings: where they come from, and one line for each mistake."""

import os
import socket
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import ValidationError

from netplug import config
from netplug.config import load
from netplug.errors import NetplugError
from netplug.setting_values import AddressPool
from netplug.store.access import EtcdAccess

WriteFile = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("NETPLUG_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "absent.toml")


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteFile:
    def write(text: str) -> Path:
        path = tmp_path / "netplug.toml"
        path.write_text(text)
        monkeypatch.setenv("NETPLUG_CONFIG", str(path))
        return path

    return write


def refusal(**flags: object) -> str:
    with pytest.raises(NetplugError) as caught:
        load(**flags)
    assert caught.value.kind == "invalid"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_any_setting_there_are_defaults() -> None:
    settings = load()
    assert settings.state_dir == Path("/var/lib/netplug")
    assert settings.api_socket == Path("/run/netplug/netplug.sock")
    assert settings.plugin_socket == Path("/run/docker/plugins/pynet.sock")
    assert settings.host_name == socket.gethostname()
    assert (settings.store, settings.docker_host) == ("sqlite", "unix:///var/run/docker.sock")
    assert (settings.log_format, settings.log_level, settings.address_pool) == ("console", "info", ())


def test_a_flag_wins_over_environment_over_file_over_default(
    settings_file: WriteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_file('state_dir = "/file"\nrun_dir = "/file"\nplugin_dir = "/file"')
    monkeypatch.setenv("NETPLUG_STATE_DIR", "/env")
    monkeypatch.setenv("NETPLUG_RUN_DIR", "/env")
    settings = load(state_dir="/flag", run_dir=None, store=None, address_pool=[])
    assert (settings.state_dir, settings.run_dir, settings.plugin_dir, settings.store) == (
        Path("/flag"),
        Path("/env"),
        Path("/file"),
        "sqlite",
    )


def test_the_usual_file_is_read_when_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "absent.toml").write_text('driver_name = "other"')
    assert load().driver_name == "other"


def test_an_empty_variable_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETPLUG_STORE", "")
    monkeypatch.setenv("NETPLUG_CONFIG", "")
    assert load().store == "sqlite"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load().store = "other"


def test_a_relative_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(state_dir="x").state_dir == tmp_path / "x"


def test_a_bad_value_names_its_source(settings_file: WriteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    path = settings_file('log_format = "xml"')
    assert refusal().startswith(f"setting log_format ({path}) is 'xml': ")
    monkeypatch.setenv("NETPLUG_LOG_FORMAT", "yaml")
    assert refusal() == "setting log_format (NETPLUG_LOG_FORMAT) is 'yaml': must be 'console' or 'json'"
    assert refusal(log_format="csv").startswith("setting log_format (--log-format) is 'csv': ")


def test_an_unknown_key_is_named(settings_file: WriteFile) -> None:
    path = settings_file('state-dir = "/x"')
    assert refusal() == f"unknown setting 'state-dir' in {path} (did you mean state_dir)"
    settings_file("[dns]\nport = 53")
    assert "unknown setting 'dns' in " in refusal()
    settings_file("")
    assert "unknown setting 'colour' as a flag" in refusal(colour="red")


def test_a_file_that_is_not_toml_is_named(settings_file: WriteFile) -> None:
    path = settings_file("store = sqlite\n")
    assert refusal().startswith(f"settings file {path} cannot be read: invalid value (at line 1")
    path.write_bytes(b'store = "\xff"')
    assert "cannot be read" in refusal()


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETPLUG_CONFIG", str(tmp_path / "none.toml"))
    assert refusal() == f"settings file {tmp_path}/none.toml of NETPLUG_CONFIG does not exist"


def test_a_store_is_sqlite_or_etcd() -> None:
    assert load().etcd is None
    access = load(store="etcd://10.0.0.1:2379,[fd00::1]:2379").etcd
    assert access == EtcdAccess(("10.0.0.1:2379", "[fd00::1]:2379"))
    assert refusal(store="mysql") == (
        "setting store (--store) is 'mysql': is neither sqlite nor etcd://host:port[,host:port]…"
    )
    assert refusal(store="etcd://10.0.0.1").startswith(
        "setting store (--store) is 'etcd://10.0.0.1': has endpoint '10.0.0.1', not of the form etcd://host:port"
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    paths = {name: tmp_path / f"{name}.pem" for name in ("etcd_ca", "etcd_cert", "etcd_key")}
    for path in paths.values():
        path.touch()
    return {name: str(path) for name, path in paths.items()}


def test_etcds_files_go_together(files: dict[str, str], tmp_path: Path) -> None:
    etcd = "etcd://a:1"
    access = load(store=etcd, **files).etcd
    assert access
    assert {"etcd_ca": str(access.ca), "etcd_cert": str(access.cert), "etcd_key": str(access.key)} == files
    assert access.urls == ("https://a:1",)
    ca, cert, key = files.values()
    assert load(store=etcd, etcd_ca=ca).etcd == EtcdAccess(("a:1",), Path(ca))
    assert "has no effect with store sqlite" in refusal(etcd_ca=ca)
    assert "(--etcd-cert)" in (text := refusal(store=etcd, etcd_cert=cert, etcd_key=key))
    assert "has no effect without etcd_ca" in text
    assert f"setting etcd_key (default) is not given: the key of etcd_cert '{cert}' is missing" == refusal(
        store=etcd, etcd_ca=ca, etcd_cert=cert
    )
    assert "has no effect without etcd_cert" in refusal(store=etcd, etcd_ca=ca, etcd_key=key)
    absent = str(tmp_path / "absent.pem")
    assert refusal(store=etcd, etcd_ca=absent) == f"setting etcd_ca (--etcd-ca) is '{absent}': is not a file"


def test_etcds_user_comes_from_the_url_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    access = load(store="etcd://np:a%40b@h:1").etcd
    assert access
    assert (access.user, access.password) == ("np", "a@b")
    monkeypatch.setenv("NETPLUG_ETCD_USER", "np")
    assert "etcd_user and etcd_password must be set together" in refusal(store="etcd://h:1")
    monkeypatch.setenv("NETPLUG_ETCD_PASSWORD", "secret")
    access = load(store="etcd://h:1").etcd
    assert access
    assert (access.user, access.password) == ("np", "secret")
    assert "has no effect with store sqlite" in refusal()
    assert "is also given in the store's URL" in refusal(store="etcd://np:x@h:1")


def test_no_password_is_ever_shown(settings_file: WriteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(store="etcd://np:secret@h").startswith("setting store (--store) is 'etcd://***@h': has endpoint 'h'")
    assert "secret" not in refusal(store="etcd://np:secret@h:1,h:1")
    monkeypatch.setenv("NETPLUG_ETCD_PASSWORD", "secret")
    text = refusal(store="etcd://h:1")
    assert (
        text
        == "setting etcd_password (NETPLUG_ETCD_PASSWORD) is '***': etcd_user and etcd_password must be set together"
    )
    monkeypatch.delenv("NETPLUG_ETCD_PASSWORD")
    settings_file("etcd_password = 5551234")
    assert "5551234" not in refusal()


@pytest.mark.parametrize("name", ["pynet", "a", "0a", "my.net-work_2"])
def test_plugin_names_are_accepted(name: str) -> None:
    assert load(driver_name=name).driver_name == name


@pytest.mark.parametrize("name", ["Pynet", "-a", ".a", "a b", "a/b", "pynet\n", "", "é", "../x"])
def test_what_is_no_plugin_name_is_refused(name: str) -> None:
    assert refusal(driver_name=name).startswith(f"setting driver_name (--driver-name) is {name!r}: is not a plugin")


@pytest.mark.parametrize("name", ["bridge", "host", "none", "null", "macvlan", "ipvlan", "overlay"])
def test_the_names_of_dockers_drivers_are_refused(name: str) -> None:
    assert "is the name of a built-in driver of docker" in refusal(driver_name=name)


@pytest.mark.parametrize("host", ["none", "unix:///run/user/1000/docker.sock"])
def test_docker_hosts_are_accepted(host: str) -> None:
    assert load(docker_host=host).docker_host == host


@pytest.mark.parametrize("host", ["tcp://1.2.3.4:2375", "unix://rel", "/var/run/docker.sock", "unix://", ""])
def test_what_is_no_docker_host_is_refused(host: str) -> None:
    assert "neither unix:///path nor none" in refusal(docker_host=host)


def test_a_socket_path_beyond_the_limit_is_refused_early() -> None:
    fits = "/" + "x" * (107 - len("//netplug.sock"))
    assert len(str(load(run_dir=fits).api_socket)) == 107
    assert refusal(run_dir=fits + "x").endswith("/netplug.sock is 108 bytes long, the limit is 107")
    assert "108 bytes" in refusal(plugin_dir="/" + "x" * (108 - len("//pynet.sock")))
    assert "the limit is 107" in refusal(docker_host="unix:///" + "x" * 107)
    assert "the limit is 107" in refusal(driver_name="x" * 100)


@pytest.mark.parametrize("name", ["a/b", "-a", "a b", "x" * 254])
def test_what_is_no_host_name_is_refused(name: str) -> None:
    assert "is not a host name" in refusal(host_name=name)


def test_levels_are_read_in_any_case() -> None:
    assert load(log_level="DEBUG").log_level == "debug"


def test_address_pools_come_from_flag_file_and_environment(
    settings_file: WriteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["base=10.208.0.0/12,size=24", "size=64,base=fd00::/48"]
    wanted = (AddressPool(ip_network("10.208.0.0/12"), 24), AddressPool(ip_network("fd00::/48"), 64))
    assert load(address_pool=texts).address_pool == wanted
    assert load(address_pool=wanted).address_pool == wanted
    settings_file(f"address_pool = {texts}")
    assert load().address_pool == wanted
    monkeypatch.setenv("NETPLUG_ADDRESS_POOL", texts[0])
    assert load().address_pool == wanted[:1]
    monkeypatch.setenv("NETPLUG_ADDRESS_POOL", " ".join(texts))
    assert load().address_pool == wanted
    assert str(wanted[0]) == texts[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.208.0.0/12", "is not of the form base=CIDR,size=BITS"),
        ("base=10.208.0.0/12", "is not of the form"),
        ("base=10.0.0.0/12,size=24,size=25", "is not of the form"),
        ("base=10.208.0.0/12,bits=24", "is not of the form"),
        ("base=10.208.0.1/12,size=24", "has host bits set"),
        ("base=10.300.0.0/12,size=24", "has an invalid base"),
        ("base=,size=24", "has an invalid base"),
        ("base=10.208.0.0/12,size=11", "invalid size: it must be a number from 12 to 30"),
        ("base=10.208.0.0/12,size=31", "invalid size: it must be a number from 12 to 30"),
        ("base=10.208.0.0/12,size=-24", "invalid size"),
        ("base=10.208.0.0/12,size=x", "invalid size"),
        ("base=fd00::/48,size=127", "invalid size: it must be a number from 48 to 126"),
    ],
)
def test_a_bad_address_pool_is_named(text: str, reason: str) -> None:
    message = refusal(address_pool=["base=192.168.0.0/16,size=24", text])
    assert message.startswith("setting address_pool (--address-pool) is ")
    assert f"address pool {text!r} " in message
    assert reason in message


def test_address_pools_that_overlap_are_named() -> None:
    texts = ["base=10.0.0.0/8,size=24", "base=fd00::/48,size=64", "base=10.208.0.0/12,size=24"]
    message = refusal(address_pool=texts)
    assert message.endswith(f"address pool {texts[2]!r} overlaps {texts[0]!r}")


def test_address_pools_of_another_shape_are_refused(settings_file: WriteFile) -> None:
    settings_file("address_pool = 24")
    assert "is not a list" in refusal()


@pytest.mark.parametrize("text", ["127.0.0.1:9820", "[::1]:9820", "10.0.0.1:1", "[::]:65535"])
def test_the_page_listens_where_it_is_told(text: str) -> None:
    at = load(http=text).http_at
    assert at is not None
    assert text in {f"{at[0]}:{at[1]}", f"[{at[0]}]:{at[1]}"}


def test_no_page_by_default() -> None:
    assert load().http_at is None


@pytest.mark.parametrize("text", ["9820", ":9820", "localhost:80", "::1:80", "[10.0.0.1]:80", "1.2.3.4", "1.2.3.4:"])
def test_a_place_for_the_page_has_address_and_port(text: str) -> None:
    assert "is not of the form ADDRESS:PORT" in refusal(http=text) or "has no port" in refusal(http=text)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "08", "x"])
def test_a_place_for_the_page_has_a_real_port(port: str) -> None:
    assert "has no port from 1 to 65535" in refusal(http=f"127.0.0.1:{port}")
