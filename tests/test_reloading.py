"""A reload: what changes at run time does, what needs a restart is named, and what is refused changes nothing."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from living import Living, settings_in, until
from quiet import quiet_log

from netplug import log as logging
from netplug.config import Settings
from netplug.daemon.reloading import AT_RUN_TIME
from netplug.dns.forward_rules import Rule
from netplug.errors import NetplugError

log = structlog.get_logger(__name__)


class Sources:
    """What a reload reads: the settings of `flags`, or `refusal`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flags: dict[str, Any] = {}
        self.refusal: NetplugError | None = None

    def read(self) -> Settings:
        if self.refusal:
            raise self.refusal
        return settings_in(self.folder, **self.flags)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for level in ("info", "warning", "error"):
        monkeypatch.setattr(
            f"netplug.daemon.reloading.log.{level}", lambda event, **keys: found.append({"event": event, **keys})
        )
    return found


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path)


@pytest.fixture
def daemon(sources: Sources) -> Iterator[Living]:
    with quiet_log():
        it = Living(sources.read(), read=sources.read).start()
        yield it
        it.stop()
    assert it.error is None


def reload(daemon: Living, said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reload, and return what the log says of it."""
    said.clear()
    daemon.do(lambda it: it.reload())
    until(lambda: any(it["event"] in {"settings.reloaded", "settings.refused"} for it in said), "it has reloaded")
    return list(said)


def test_resolvers_and_pools_are_those_of_the_new_settings(
    daemon: Living, sources: Sources, said: list[dict[str, Any]]
) -> None:
    before = daemon.client.post("networks", body={"name": "before"})
    sources.flags = {"dns_upstream": ["192.0.2.53"], "address_pool": ["base=10.9.0.0/16,size=24"]}
    assert reload(daemon, said) == [
        {
            "event": "settings.reloaded",
            "changed": {"address_pool": "base=10.9.0.0/16,size=24", "dns_upstream": "192.0.2.53"},
        }
    ]
    after = daemon.client.post("networks", body={"name": "after"})
    assert after["subnets"][0]["subnet"] == "10.9.0.0/24"
    assert before["subnets"][0]["subnet"].startswith("10.208.")
    assert daemon.do_and_get(lambda it: it._parts.name_server._configured) == (Rule.parse("192.0.2.53"),)
    assert daemon.client.get("settings")["dns_upstream"] == "192.0.2.53"
    assert daemon.client.post("networks", body={"name": "again"})["subnets"][0]["subnet"] == "10.9.1.0/24"


def test_subnets_in_use_are_skipped_by_new_pools(daemon: Living, sources: Sources, said: list[dict[str, Any]]) -> None:
    daemon.client.post("networks", body={"name": "one", "subnets": [{"subnet": "10.9.0.0/24"}]})
    sources.flags = {"address_pool": ["base=10.9.0.0/16,size=24"]}
    reload(daemon, said)
    assert daemon.client.post("networks", body={"name": "two"})["subnets"][0]["subnet"] == "10.9.1.0/24"


def test_what_needs_a_restart_is_named_each_time_and_stays(
    daemon: Living, sources: Sources, said: list[dict[str, Any]]
) -> None:
    sources.flags = {"dns_domain": "example.internal", "driver_name": "blue", "dns_special": "inside"}
    for changed in ({"dns_special": "inside"}, {}):
        needs, reloaded = reload(daemon, said)
        assert (needs["event"], needs["settings"]) == ("settings.need_restart", ["dns_domain", "driver_name"])
        assert "systemctl restart netplug" in needs["hint"]
        assert reloaded["changed"] == changed
    assert daemon.client.get("settings")["dns_domain"] == "netplug.internal"


def test_refused_settings_change_nothing_and_are_shown_until_they_are_right(
    daemon: Living, sources: Sources, said: list[dict[str, Any]]
) -> None:
    sources.flags = {"dns_upstream": ["192.0.2.53"]}
    sources.refusal = NetplugError("invalid", "setting dns_upstream (netplug.toml) is 'x': is no address")
    assert [it["event"] for it in reload(daemon, said)] == ["settings.refused"]
    assert "dns_upstream (netplug.toml)" in said[0]["reason"]
    assert daemon.do_and_get(lambda it: it._parts.name_server._configured) == ()
    shown = daemon.client.get("diff")["differences"]
    assert [(it["object"], "dns_upstream" in it["what"]) for it in shown] == [("settings", True)]
    sources.refusal = None
    assert [it["event"] for it in reload(daemon, said)] == ["settings.reloaded"]
    assert daemon.client.get("diff")["differences"] == []


def test_settings_that_a_reload_changes_exist() -> None:
    assert set(Settings.model_fields) > AT_RUN_TIME


def test_log_changes_its_format_and_level_for_loggers_that_have_written(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with quiet_log():
        logging.configure("console", "info", lasting=True)
        log.info("one")
        log.debug("two")
        logging.reconfigure("json", "debug")
        log.debug("three")
        logging.reconfigure("console", "warning")
        log.info("four")
        log.warning("five")
    lines = stream.getvalue().splitlines()
    assert [word for word in ("one", "two", "three", "four", "five") if word in stream.getvalue()] == [
        "one",
        "three",
        "five",
    ]
    assert json.loads(lines[1])["event"] == "three"
    assert not lines[2].startswith("{")
