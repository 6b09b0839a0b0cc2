"""docs/benchmarks.md, written from benchmarks/results/*.json.

python benchmarks/report.py [--check]     --check: writes nothing, exits with 1 where the page is out of date
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
_HEAD = """\
# Benchmarks

Written by `benchmarks/report.py` from `benchmarks/results/*.json`; figures are those of the run named under each table.
`make bench NAME=standard_load` runs one and rewrites its JSON; `python benchmarks/report.py` then rewrites this page.
Broker, roles and the benchmark's own producer and consumer share the machine. Exactly-once is on everywhere.
"""
Figures = dict[str, Any]


def page() -> str:
    """The whole page. A benchmark without a result is left out."""
    parts = [_HEAD]
    for name, section in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            parts.append(section(json.loads(path.read_text("utf-8"))))
    return "\n".join(parts)


def standard_load(f: Figures) -> str:
    lines = ["## The standard load\n", _STANDARD]
    if sustained := f.get("sustained"):
        fresh, lag = sustained["freshness_ms"], sustained["lag_events"]
        lines.append(
            _table(
                f"sustained, {sustained['rate']:,} events/s sent for {sustained['seconds']:.0f} s",
                [
                    ("events applied a second", f"{sustained['events_per_s']:,}", "≥ 5,000"),
                    ("decisions a second", f"{sustained['decisions_per_s']:,}", ""),
                    ("lag in events: median, largest", f"{lag['p50']:,}, {lag['max']:,}", "bounded"),
                    ("all applied and learned after the last event", f"{sustained['drain_s']} s", ""),
                    ("freshness p50, p99", f"{fresh['p50']:.0f} ms, {fresh['p99']:.0f} ms", ""),
                    ("cores busy", _cores(sustained["cpu"]), ""),
                ],
            )
        )
    if most := f.get("at_most"):
        lines.append(
            _table(
                f"a backlog of {most['events']:,} events, as fast as it goes",
                [
                    ("events applied a second", f"{most['events_per_s']:,}", ""),
                    ("decisions a second", f"{most['decisions_per_s']:,}", ""),
                    ("cores busy", _cores(most["cpu"]), ""),
                ],
            )
        )
    if peer := f.get("peer"):
        rows = [("events a second", f"{peer['events_per_s']:,}", ""), ("cores busy", f"{peer['cpu_cores']}", "")]
        if ratio := f.get("ratio_to_peer"):
            rows.append(("headrace, times as many events", f"{ratio}", "≥ 5"))
        if most := f.get("at_most"):  # here every event gets a slate; headrace makes one a user and micro-batch
            decisions = most["decisions_per_s"] / peer["events_per_s"]
            rows.append(("headrace, times as many slates", f"{decisions:.1f}", ""))
        lines.append(_table("a plain Faust app doing the same work, an event at a time", rows))
    return "\n".join([*lines, _machine(f["machine"])])


def worker_memory(f: Figures) -> str:
    rows = [
        ("worker's memory a user", f"{f['worker_bytes_a_user']:,} bytes", "≤ 4,000"),
        ("of which packed state", f"{f['packed_bytes_a_user']:,} bytes", ""),
        ("recovery, two partitions at the same time", f"{f['recovery_s']} s", "≤ 10"),
        ("process started to ready", f"{f['ready_s']['full']} s ({f['ready_s']['empty']} s when empty)", ""),
    ]
    title = f"{f['users']:,} users with {f['events_each']} events and {f['open_decisions_each']} open decisions each"
    return "\n".join(["## A worker's memory\n", _table(title, rows), _machine(f["machine"])])


def _written_by(benchmark: str) -> Callable[[Figures], str]:
    """The `section` of benchmarks/`benchmark`.py."""

    def section(f: Figures) -> str:
        folder = str(Path(__file__).parent)
        if folder not in sys.path:
            sys.path.append(folder)
        text: str = importlib.import_module(benchmark).section(f)
        return text

    return section


SECTIONS = {
    "standard_load": standard_load,
    "online_retail": _written_by("online_retail"),
    "worker_memory": worker_memory,
    "ten_days": _written_by("ten_days"),
    "live_rules": _written_by("live_rules"),
    "new_items": _written_by("new_items"),
    "explanation": _written_by("explanation"),
    "merges": _written_by("merges"),
    "policy_speed": _written_by("policy_speed"),
    "exactness": _written_by("exactness"),
    "bandit_peers": _written_by("bandit_peers"),
    "drift": _written_by("drift"),
    "delay": _written_by("delay"),
    "evaluation": _written_by("evaluation"),
    "environment": _written_by("environment"),
    "slateq": _written_by("slateq"),
    "gate": _written_by("gate"),
    "contamination": _written_by("contamination"),
    "safety": _written_by("safety"),
    "warm_start": _written_by("warm_start"),
    "day_one": _written_by("day_one"),
    "user_encoder": _written_by("user_encoder"),
    "retrieval": _written_by("retrieval"),
    "next_item": _written_by("next_item"),
    "user_forms": _written_by("user_forms"),
    "texts": _written_by("texts"),
    "hot_swap": _written_by("hot_swap"),
    "erasure": _written_by("erasure"),
    "cold_items": _written_by("cold_items"),
    "placements": _written_by("placements"),
}

_STANDARD = """\
Zipf over 100,000 users and 20,000 items; views, clicks, carts and purchases that each make their user due; slates of 10
from 120 candidates; every role a process of its own (`benchmarks/load.py`, `benchmarks/standard_load.py`).
"""


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    lines = [f"| {title} | | to reach |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows), ""]
    return "\n".join(lines)


def _cores(cpu: Figures) -> str:
    return ", ".join(f"{name.removesuffix('_cores')} {cores}" for name, cores in cpu.items())


def _machine(m: Figures) -> str:
    return (
        f"{m['cores']} cores ({m['cpu']}), Python {m['python']}, commit {m['commit']},"
        f" load average before the run {m['load_before']}.\n"
    )


def main() -> None:
    written = PAGE.read_text("utf-8") if PAGE.exists() else ""
    if "--check" in sys.argv[1:]:
        if written != page():
            sys.exit(f"{PAGE.name} is out of date: run python benchmarks/report.py")
        return
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
