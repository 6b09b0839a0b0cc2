"""deploy/ and docs/operations.md say about metrics, rules and panels what the code says, without starting anything."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from headrace.streams.metrics import Metrics

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy/prometheus"
GRAFANA = ROOT / "deploy/grafana"
OPERATIONS = ROOT / "docs/operations.md"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def declared() -> dict[str, set[str]]:
    """Series name as it is queried -> its labels."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, "worker")
    labels = {m._name: set(m._labelnames) for m in vars(metrics).values() if hasattr(m, "_labelnames")}
    series = {}
    for family in registry.collect():
        own = labels.get(family.name, set())
        if family.type == "histogram":
            series[family.name + "_bucket"] = own | {"le"}
            series[family.name + "_sum"] = series[family.name + "_count"] = own
        else:
            series[family.name + ("_total" if family.type == "counter" else "")] = own
    return series


def rules(file: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((PROMETHEUS / file).read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [p for p in json.loads((GRAFANA / "headrace.json").read_text())["panels"] if p["type"] != "row"]


def queries() -> list[str]:
    return [rule["expr"] for rule in rules("recording.yml") + rules("alerts.yml")] + [
        target["expr"] for panel in panels() for target in panel["targets"]
    ]


@needs_promtool
@pytest.mark.parametrize("file", ["prometheus.yml", "prometheus.compose.yml"])
def test_prometheus_accepts_the_configuration(file: str) -> None:
    promtool("check", "config", file)


@needs_promtool
def test_alerts_fire_when_they_must_and_only_then() -> None:
    promtool("test", "rules", "alerts.test.yml")


def test_every_alert_is_tested_firing_and_quiet() -> None:
    expected: dict[str, set[bool]] = {}
    for case in yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]:
        for check in case["promql_expr_test"]:
            alert = re.search(r'alertname="(\w+)"', check["expr"])
            assert alert, check
            expected.setdefault(alert[1], set()).add(bool(check["exp_samples"]))
    assert expected == {rule["alert"]: {True, False} for rule in rules("alerts.yml")}


def test_queries_name_declared_series_and_labels() -> None:
    series = declared()
    recorded = {rule["record"] for rule in rules("recording.yml")}
    # labels that Prometheus or the recording rules add
    added = {"job", "role", "instance", "alertstate"}
    for query in queries():
        for name, matchers in re.findall(r"\b(headrace[\w:]+|process_\w+)\s*(\{[^}]*\})?", query):
            if name in ("headrace",):
                continue
            assert name in series or name in recorded, f"{name} in {query}"
            if name in series:
                used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers or ""))
                assert used <= series[name] | added, f"{name}{matchers} in {query}"


def test_panels_stand_in_their_grid_and_ask_the_provisioned_source() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    taken: set[tuple[int, int]] = set()
    ids = [p["id"] for p in json.loads((GRAFANA / "headrace.json").read_text())["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}, panel["title"]
        assert panel["description"] and all(t["expr"] for t in panel["targets"])
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells


def test_operations_lists_every_metric_and_no_other() -> None:
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in declared() if name.startswith("headrace_")}
    table = re.findall(r"^\| `(headrace_\w+)`", OPERATIONS.read_text(), re.MULTILINE)
    assert sorted(table) == sorted(names)


def test_operations_says_what_to_do_for_every_alert() -> None:
    headings = re.findall(r"^### (Headrace\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in rules("alerts.yml"))
    for rule in rules("alerts.yml"):
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
