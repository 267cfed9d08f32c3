"""Lab files and netplug.toml with anything in them: read, or refused in one plain line that names the file."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import INTERNAL, VALUES, mutated, often, raw_texts
from hypothesis import given
from hypothesis import strategies as st

from netplug.config import Settings
from netplug.config import load as load_settings
from netplug.errors import NetplugError
from netplug.lab.file import Lab
from netplug.lab.file import load as load_lab

LAB = {
    "name": "mine",
    "store": "etcd",
    "underlay": {"ipv4": "198.18.0.0/24", "ipv6": "fd00:1ab::/64", "family": 4, "mtu": 1500},
    "hosts": {"a": {"docker": True, "serve": ["--log-level", "debug"]}, "b": {"mtu": 1400, "rate": "100mbit"}},
    "networks": {
        "blue": {"hosts": ["a", "b"], "mode": "overlay", "subnets": ["10.1.0.0/24"], "options": {"mtu": 1300}},
        "green": {"ipv6": True, "internal": True},
    },
    "containers": {
        "web": {"host": "a", "runtime": "docker", "networks": ["blue"], "ip": ["10.1.0.9"], "publish": ["80:80"]},
        "one": {"host": "b", "networks": ["green"], "command": ["sleep", "9"]},
    },
}
YAML = (
    "a: &a [*a]",
    "&a {b: *a}",
    "name: 2020-99-99",
    "name: !!python/object/apply:os.system [reboot]",
    "hosts: !!binary x",
    "[" * 1000,
    "{a: " * 1000,
    "\x00",
    "%YAML 9.9\n---\n{}",
    "--- 1\n--- 2",
    "a: 1\na: 2",
    "hosts: {a: {mtu: 1_500:60}}",
    "hosts: {a: {mtu: .inf}}",
    "x: &x [1,1,1,1,1,1,1,1]\n" + "".join(f"y{n}: &y{n} [{','.join(['*x'] * 9)}]\n" for n in range(9)),
    "!!set {a}",
    "<<: 7",
    "=: 1",
    "name: " + "9" * 5000,
)


def toml_text(value: Any) -> str:
    """Return a value in TOML; what it cannot say is text."""
    if isinstance(value, bool | int | str) or (isinstance(value, list) and value == ["x"] * len(value)):
        return json.dumps(value)
    return json.dumps(str(value)[:50])


def plain(exc: NetplugError, path: Path) -> None:
    text = str(exc)
    assert exc.kind == "invalid"
    assert str(path) in text
    assert "\n" not in text
    assert not INTERNAL.search(text), text
    assert len(text) < 2000


def lab_of(path: Path) -> Lab | None:
    try:
        return load_lab(path)
    except NetplugError as exc:
        plain(exc, path)
        return None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lab.yaml"


@often(200)
@given(mutated(LAB))
def test_lab(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))  # which is YAML, too
    lab_of(path)


@pytest.mark.parametrize("value", [True, False, 7, 1.5, 2**40])
@pytest.mark.parametrize("key", ["ipv4", "ipv6"])
def test_number_is_no_subnet(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps({**LAB, "underlay": {key: value}}))
    assert lab_of(path) is None


@pytest.mark.parametrize("text", YAML, ids=range(len(YAML)))
def test_lab_of_odd_yaml(path: Path, text: str) -> None:
    path.write_text(text)
    lab_of(path)


@often(60)
@given(raw_texts(yaml.safe_dump(LAB).encode()).filter(lambda text: len(text) < 2000))  # yaml is slow
def test_lab_of_any_octets(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    lab_of(path)


def settings_of(path: Path) -> Settings | None:
    try:
        return load_settings()
    except NetplugError as exc:
        plain(exc, path)
        return None


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "netplug.toml"
    monkeypatch.setenv("NETPLUG_CONFIG", str(path))
    return path


TOML_VALUES = st.one_of(VALUES.map(toml_text), st.sampled_from(["", "[", "1979-05-27", "0x1f", "inf", "{a = 1}", "x"]))


@often(200)
@given(st.sampled_from(sorted(Settings.model_fields)), TOML_VALUES)
def test_settings(toml: Path, name: str, text: str) -> None:
    toml.write_text(f"{name} = {text}\n", encoding="utf-8", errors="replace")
    settings_of(toml)


@often(60)
@given(
    raw_texts(b'state_dir = "/var/lib/x"\ndns_upstream = ["10.0.0.1"]\n[a]\nb = 1\n').filter(lambda it: len(it) < 2000)
)
def test_settings_of_any_octets(toml: Path, text: bytes) -> None:
    toml.write_bytes(text)
    settings_of(toml)


def test_ordinary_files_are_read(path: Path, toml: Path) -> None:
    path.write_text(json.dumps(LAB))
    assert lab_of(path)
    toml.write_text('log_level = "debug"\n')
    found = settings_of(toml)
    assert found
    assert found.log_level == "debug"
