"""The dashboard and the alert rules name metrics that there are, and the rules do what they say."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from netplug.insight.metrics.catalogue import ALL, Type

ROOT = Path(__file__).parent.parent
ALERTS = ROOT / "examples/prometheus/alerts.yml"
DASHBOARD = ROOT / "examples/grafana/netplug.json"
PROMTOOL = shutil.which("promtool") or str(ROOT / ".venv/prometheus/usr/bin/promtool")
NEEDS_PROMTOOL = pytest.mark.skipif(not Path(PROMTOOL).exists(), reason="needs promtool (packaging/setup.sh system)")


def series() -> set[str]:
    parts = ("_bucket", "_sum", "_count")
    return {it.name + part for it in ALL for part in (parts if it.type is Type.HISTOGRAM else ("",))}


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD, ALERTS.with_name("alerts_test.yml")], ids=lambda path: path.name)
def test_examples_name_metrics_that_there_are(path: Path) -> None:
    named = set(re.findall(r"\bnetplug_[a-z_]+", path.read_text()))
    assert len(named) > 8
    assert named <= series()


def test_the_dashboard_shows_something_in_each_panel_and_none_covers_another() -> None:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or all(target["expr"] for target in panel["targets"]), panel["title"]
        assert at["x"] + at["w"] <= 24
    assert len({panel["id"] for panel in panels}) == len(panels)


@NEEDS_PROMTOOL
@pytest.mark.parametrize(
    "words",
    [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml"), ("check", "config", "prometheus.yml")],
    ids=" ".join,
)
def test_promtool_accepts_the_examples(words: tuple[str, ...]) -> None:
    done = subprocess.run([PROMTOOL, *words], cwd=ALERTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@NEEDS_PROMTOOL
def test_each_alert_is_raised_by_the_tests_of_the_rules() -> None:
    raised = set(re.findall(r'alertname="(\w+)"', ALERTS.with_name("alerts_test.yml").read_text()))
    assert raised == set(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
