"""Log lines: one shape for our events and those of libraries."""

import json
import logging
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest
import structlog

from netplug.log import configure

pytestmark = pytest.mark.usefixtures("own_log")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_an_event_is_one_json_line_with_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger("netplug.engine")  # made before, as at import
    configure("json", "info")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        log.info("endpoint.created", ip=ip_address("10.0.0.2"), text="a\nb")
    (line,) = lines(capsys)
    when = datetime.fromisoformat(line.pop("timestamp"))
    assert when.utcoffset() == UTC.utcoffset(None)
    assert line == {
        "event": "endpoint.created",
        "ip": "10.0.0.2",
        "level": "info",
        "logger": "netplug.engine",
        "request_id": "r1",
        "text": "a\nb",
    }


def test_levels_below_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "warning")
    log = structlog.get_logger("x")
    log.debug("d")
    log.info("i")
    log.warning("w")
    assert [line["event"] for line in lines(capsys)] == ["w"]
    configure("json", "debug")
    log.debug("d")
    assert [line["event"] for line in lines(capsys)] == ["d"]


def test_libraries_speak_the_same_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "debug")
    configure("json", "debug")
    library = logging.getLogger("uvicorn.error")
    library.info("started")
    library.warning("port %d is slow", 80)
    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "port 80 is slow", "level": "warning", "logger": "uvicorn.error"}


def test_libraries_are_not_louder_than_we(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "error")
    logging.getLogger("aiohttp").warning("w")
    assert lines(capsys) == []


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_no_local_variables(capsys: pytest.CaptureFixture[str], log_format: Any, own: bool) -> None:
    configure(log_format, "info")
    secret = "pass" + "word"
    try:
        raise ValueError(len(secret))  # noqa: TRY301 - the frame with the secret is the point
    except ValueError:
        if own:
            structlog.get_logger("x").exception("failed")
        else:
            logging.getLogger("x").exception("failed")
    text = capsys.readouterr().err
    assert "ValueError: 8" in text
    assert "password" not in text


def test_the_console_has_no_colours_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure("console", "info")
    structlog.get_logger("netplug.x").info("network.created", network="blue")
    text = capsys.readouterr().err
    assert "\x1b" not in text
    assert text.count("\n") == 1
    for part in ("network.created", "network=blue", "[info", "netplug.x"):
        assert part in text
