"""Docker's managed plugin: what its config.json promises about settings, sockets and rights."""

import json
from pathlib import Path
from typing import Any

from netplug.config import Settings, load

HERE = Path(__file__).parent.parent / "packaging/plugin"
CONFIG: dict[str, Any] = json.loads((HERE / "config.json").read_text())
FIXED = {"state_dir", "run_dir", "plugin_dir", "docker_host"}
"""Places in the plugin."""


def test_each_setting_can_be_set_by_docker_plugin_set() -> None:
    names = {item["name"] for item in CONFIG["env"] if item["settable"] == ["value"]}
    assert names == {f"NETPLUG_{name.upper()}" for name in Settings.model_fields.keys() - FIXED}


def test_the_defaults_are_those_of_the_daemon_but_for_the_name(monkeypatch: Any) -> None:
    before = load()
    for item in CONFIG["env"]:
        monkeypatch.setenv(item["name"], item["value"])
    inside = load()
    changed = {name for name in Settings.model_fields if getattr(inside, name) != getattr(before, name)}
    assert changed == {"driver_name"}
    assert inside.driver_name == "pynet:latest"


def test_the_daemon_listens_where_dockerd_connects(monkeypatch: Any) -> None:
    monkeypatch.setenv("NETPLUG_DRIVER_NAME", "registry.example:5000/team/net:1.2")
    assert str(load().plugin_socket) == f"/run/docker/plugins/{CONFIG['interface']['socket']}"
    assert str(load().state_dir) == CONFIG["propagatedMount"]


def test_commands_in_messages_are_those_for_a_plugin(monkeypatch: Any) -> None:
    assert (load().restart, load().host_root) == ("systemctl restart netplug", Path("/"))
    monkeypatch.setenv("NETPLUG_DRIVER_NAME", "net:1")
    assert load().restart == "docker plugin disable -f net:1 && docker plugin enable net:1"
    assert load().host_root == Path("/proc/1/root")


def test_no_more_rights_are_asked_for_than_the_documentation_says() -> None:
    text = (HERE.parent.parent / "docs/plugin.md").read_text()
    assert all(f"`{name}`" in text for name in CONFIG["linux"]["capabilities"])
    assert "mounts" not in CONFIG
