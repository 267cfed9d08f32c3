"""The file of settings that packages install: all settings, as comments, with values that the daemon takes."""

import tomllib
from pathlib import Path

import pytest
from packaging_tool import tool

from netplug.config import Settings, load

settings_file = tool("settings_file")
_OF_CLUSTERS = {"vtep", *(name for name in Settings.model_fields if name.startswith("etcd_"))}
"""They have an effect only with a store that hosts share."""


def _values() -> dict[str, object]:
    lines = settings_file.FILE.read_text().splitlines()
    return tomllib.loads("\n".join(line[1:] for line in lines if line.startswith("#") and line[1:2].isalpha()))


def test_file_is_what_the_program_writes() -> None:
    assert settings_file.FILE.read_text() == settings_file.content(), "run make docs"


def test_file_has_each_setting_and_changes_none() -> None:
    assert list(_values()) == list(Settings.model_fields)
    assert tomllib.loads(settings_file.FILE.read_text()) == {}


def test_daemon_takes_each_line_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = load()
    values = _values()
    for name in values.keys() - _OF_CLUSTERS:
        changed = getattr(load(**{name: values[name]}), name) != getattr(defaults, name)
        assert changed == (name in {*settings_file.SAMPLES, "address_pool"}), name


def test_daemon_takes_the_lines_of_a_cluster_together(tmp_path: Path) -> None:
    values = _values()
    files = {name: tmp_path / Path(str(values[name])).name for name in ("etcd_ca", "etcd_cert", "etcd_key")}
    for file in files.values():
        file.touch()
    given = {name: values[name] for name in _OF_CLUSTERS}
    loaded = load(**{**given, **files, "store": "etcd://192.0.2.1:2379"})
    assert (loaded.etcd_user, loaded.etcd_key, loaded.vtep) == ("netplug", files["etcd_key"], "eth1")
