"""The demo as a person starts it, in a smaller world: broker, roles, shop, planted faults, one line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

pytestmark = pytest.mark.kafka

DEMO = """
import sys
from pathlib import Path
from headrace.simulation.demo import run_demo
from headrace.simulation.settings import WorldSettings
small = WorldSettings(items=400, arriving=60, users=250)
run_demo(seconds={seconds}, rate=150, bootstrap={bootstrap!r}, report=Path("report"), as_json=True, world=small)
"""
KEYS = {
    "seconds", "events_sent", "events_applied", "duplicates", "dead_letters", "planted", "recommendations",
    "policy_versions", "freshness_ms", "outcome_to_policy_ms", "span", "arms",
}  # fmt: skip


PRESET = """
from headrace.simulation import presets
from headrace.simulation.demo import run_demo
world = presets.small(presets.PRESETS["social"].world, items=200, users=150)
run_demo(seconds={seconds}, rate=120, bootstrap={bootstrap!r}, as_json=True, preset="social", world=world)
"""


def start(folder: Path, *, seconds: float, bootstrap: str | None = None, code: str = DEMO) -> subprocess.Popen[str]:
    code = code.format(seconds=seconds, bootstrap=bootstrap)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def descendants(pid: int) -> set[int]:
    """Living processes that descend from `pid`."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found, grown = {pid}, True
    while grown:
        new = {child for child, parent in parents.items() if parent in found} - found
        found |= new
        grown = bool(new)
    return found - {pid}


def test_a_short_demo_accounts_for_every_event(tmp_path: Path) -> None:
    out, said = start(tmp_path, seconds=12).communicate(timeout=240)
    lines = out.splitlines()
    assert len(lines) == 1, (out, said)
    s: dict[str, Any] = json.loads(lines[0])

    assert set(s) == KEYS and s["span"] == "last_third" and s["seconds"] == 12
    # The process ended well, so each planted message was found by name: see tally.py.
    assert s["events_sent"] == s["events_applied"] + s["duplicates"] + s["dead_letters"]
    assert s["events_sent"] > 12 * 150
    assert s["planted"]["duplicates"] == s["duplicates"] > 0
    assert s["planted"]["rubbish"] == s["dead_letters"] > 0
    assert s["planted"]["late"] > 0

    assert s["recommendations"] > 300 and s["policy_versions"] > 3
    assert set(s["arms"]) == {"policy", "item_to_item", "popular", "random", "oracle"}
    decided = [arm for arm in s["arms"].values() if arm["decisions"]]  # of a small arm maybe nobody came in 4 s
    assert s["arms"]["policy"] in decided
    for arm in decided:
        low, high = arm["ci95"]
        assert low <= arm["reward_per_decision"] <= high
    assert s["arms"]["oracle"]["decisions"] == sum(a["decisions"] for n, a in s["arms"].items() if n != "oracle")
    for times in (s["freshness_ms"], s["outcome_to_policy_ms"]):
        assert 0 < times["p50"] <= times["p99"]

    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "nothing is missing" in page and page.count("<svg") == 6
    assert "the first recommendation came" in said
    assert not list((tmp_path / ".headrace" / "demo").iterdir())  # nothing is left behind


def test_a_preset_is_another_kind_of_shop(tmp_path: Path, bootstrap: str) -> None:
    """A feed of posts: what earns are likes, and every event is accounted for as in the shop."""
    out, said = start(tmp_path, seconds=6, bootstrap=bootstrap, code=PRESET).communicate(timeout=240)
    lines = out.splitlines()
    assert len(lines) == 1, (out, said)
    s: dict[str, Any] = json.loads(lines[0])
    assert s["events_sent"] == s["events_applied"] + s["duplicates"] + s["dead_letters"] > 6 * 120
    assert s["recommendations"] > 100 and s["policy_versions"] > 3
    # So short a time may leave an arm without a decision in the span that is judged.
    decided = [arm for arm in s["arms"].values() if arm["decisions"]]
    assert decided and all(arm["reward_per_decision"] >= 0 for arm in decided)
    assert set(s["arms"]) == {"policy", "item_to_item", "popular", "random", "oracle"}


def test_ctrl_c_ends_it_and_leaves_nothing_behind(tmp_path: Path, bootstrap: str, wait_for: Any) -> None:
    process = start(tmp_path, seconds=300, bootstrap=bootstrap)
    assert process.stderr is not None
    told = process.stderr.fileno()
    os.set_blocking(told, False)
    said = b""

    def trading() -> bool:
        nonlocal said
        with contextlib.suppress(BlockingIOError):
            said += os.read(told, 65_536)
        assert process.poll() is None, said
        return bool(re.search(rb"^ +\d", said, re.MULTILINE))  # the first line of figures

    wait_for(trading, deadline=180)
    family = descendants(process.pid)
    assert len(family) >= 4  # the roles

    def ended() -> bool:
        """Pressed again where nothing happens: a signal that comes within a callback of a C library is lost."""
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        return process.poll() is not None

    wait_for(ended, deadline=60)
    assert process.returncode != 0
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), deadline=10)
    known = AdminClient({"bootstrap.servers": bootstrap})
    wait_for(lambda: not [t for t in known.list_topics(timeout=5).topics if t.startswith("headrace-demo-")])
