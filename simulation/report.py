"""The demo's report: one HTML page that opens without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.simulation import plots
from headrace.simulation.intervals import Estimate
from headrace.simulation.plots import Course
from headrace.streams.insight.page import STYLE, template, tile

TERMS = (
    ("decision", "one slate made for one user at one moment. Only decisions whose slate was really shown are counted."),
    (
        "reward per decision",
        "what the shown positions of a slate earned within the window: clicks and purchases, weighted by the settings;"
        " a return takes its purchase back.",
    ),
    ("policy", "the arm that learns. It sees the user's state, the item and what is known of both."),
    ("item to item", "a control: what others viewed or bought after the user's latest items. It keeps learning, too."),
    ("popular", "a control: what the whole shop likes now."),
    ("random", "a control: any of the same candidates that the other arms choose from, all alike."),
    (
        "oracle",
        "no arm: what the best slate would have been expected to earn, which only the simulated world knows. It reads"
        " the users' minds, the hidden part included, so no policy gets there.",
    ),
    ("interval", "95 %, from a bootstrap that draws users, because one user's decisions hang together."),
    ("freshness", "from the shop's send of an event to the arrival of the slate that it triggered, seen by the shop."),
    ("outcome to policy", "from the shop's send of an outcome to the first committed policy version that knows it."),
    ("late", "a view that was long under way gets no slate; a click after the window earns nothing. Both are counted."),
)


@dataclass(frozen=True)
class Run:
    """Everything the page shows. Arms are in the order of the summary; `summary` is the object that `--json` prints."""

    summary: Mapping[str, Any]
    window_days: float
    rate: float
    speed: float
    arms: Mapping[str, Estimate]  # the last third, the oracle among them
    courses: Mapping[str, Course]  # reward over the world's days
    freshness: Sequence[tuple[float, float]]  # (second, ms)
    outcome_to_policy: NDArray[np.float64]  # ms
    sent_per_second: NDArray[np.float64]
    slates_per_second: NDArray[np.float64]
    versions: Sequence[tuple[float, int]]  # (second, version) of the learning policy
    planted: Sequence[tuple[str, int, int]]  # what, planted, found
    missing: Sequence[str] = field(default_factory=tuple)
    settings: Sequence[tuple[str, str]] = field(default_factory=tuple)


def write(run: Run, folder: Path) -> Path:
    """Writes `report.html` into `folder`, which is made if need be; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(render(run), encoding="utf-8")
    return path


def render(run: Run) -> str:
    page = template("headrace.simulation", "report.html")
    return page.substitute(
        style=STYLE,
        lead=_lead(run),
        tiles="".join(tile(*each) for each in _tiles(run)),
        reward=plots.reward(run.courses),
        arms=plots.arms(run.arms),
        arms_table=_arms_table(run),
        freshness=plots.freshness(run.freshness),
        delays=plots.delays(run.outcome_to_policy),
        throughput=plots.throughput(run.sent_per_second, run.slates_per_second),
        versions=plots.versions(run.versions),
        accounts=_accounts(run),
        **_planted(run),
        terms="".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in TERMS),
        settings="".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in run.settings),
    )


def best_control(arms: Mapping[str, Estimate]) -> str | None:
    """The control arm that earned most."""
    controls = [name for name, e in arms.items() if name not in ("policy", "oracle") and e.decisions]
    return max(controls, key=lambda name: arms[name].mean, default=None)


def _lead(run: Run) -> str:
    seconds, days = run.summary["seconds"], run.summary["seconds"] * run.speed / 86_400
    return (
        f"{seconds:g} seconds at {run.rate:g} events a second, in which {days:.1f} days passed for the shop."
        f" Every decision was followed for {run.window_days:g} days of the shop's time."
    )


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    tiles = []
    control, policy, oracle = best_control(run.arms), run.arms.get("policy"), run.arms.get("oracle")
    if control is not None and policy is not None and policy.decisions and run.arms[control].mean > 0:
        best = run.arms[control]
        apart = "intervals apart" if policy.low > best.high else "intervals overlap"
        tiles.append((f"{policy.mean / best.mean:.2f}×", f"the best control ({_name(control)})", apart))
        if oracle is not None and oracle.mean > best.mean:
            gap = (policy.mean - best.mean) / (oracle.mean - best.mean)
            tiles.append((f"{gap:.0%}", "of the way to the oracle", "from the best control"))
    fresh, learned = run.summary["freshness_ms"], run.summary["outcome_to_policy_ms"]
    tiles.append((_ms(fresh["p50"]), "freshness, median", f"p99 {_ms(fresh['p99'])}"))
    tiles.append((_ms(learned["p50"]), "outcome to policy, median", f"p99 {_ms(learned['p99'])}"))
    tiles.append((f"{run.summary['recommendations']:,}", "recommendations", f"{run.summary['events_sent']:,} events"))
    tiles.append((f"{run.summary['policy_versions']:,}", "policy versions", "published while serving"))
    return tiles


def _arms_table(run: Run) -> str:
    rows = []
    for name, e in run.arms.items():
        dot = f'<i style="background:{plots.COLOURS.get(name, "var(--muted)")}"></i>'
        figures = f"<td>{e.mean:.3f}</td><td>{e.low:.3f} – {e.high:.3f}</td>" if e.decisions else "<td>–</td><td>–</td>"
        rows.append(f"<tr><td>{dot}{escape(_name(name))}</td><td>{e.decisions:,}</td>{figures}</tr>")
    return "".join(rows)


def _accounts(run: Run) -> str:
    s = run.summary
    accounted = s["events_applied"] + s["duplicates"] + s["dead_letters"]
    verdict = (
        "nothing is missing" if accounted == s["events_sent"] else f"{s['events_sent'] - accounted:+,} unaccounted"
    )
    return (
        f"<b>{s['events_sent']:,}</b> sent = <b>{s['events_applied']:,}</b> applied"
        f" + <b>{s['duplicates']:,}</b> duplicates + <b>{s['dead_letters']:,}</b> dead letters: {escape(verdict)}."
    )


def _planted(run: Run) -> dict[str, str]:
    """Rows of the table, and rows of the kinds of rubbish, which stand in a fold of their own."""
    rows: list[str] = []
    kinds: list[str] = []
    for what, planted, found in run.planted:
        mark = '<td class="good">all</td>' if planted == found else f'<td class="bad">{planted - found:,} missing</td>'
        row = f"<tr><td>{escape(what.removeprefix('rubbish: '))}</td><td>{planted:,}</td><td>{found:,}</td>{mark}</tr>"
        (kinds if what.startswith("rubbish: ") else rows).append(row)
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.missing[:20])
    return {"planted": "".join(rows), "kinds": "".join(kinds), "notes": f"<ul>{notes}</ul>" if notes else ""}


def _name(arm: str) -> str:
    return arm.replace("_", " ")


def _ms(value: float | None) -> str:
    if value is None or np.isnan(value):
        return "–"
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"
