"""An evaluation as a picture: every estimator beside the logged policy's own value, and every position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from headrace.policy.evaluation.evaluation import Evaluation
from headrace.policy.evaluation.intervals import Interval
from headrace.streams.errors import HeadraceError

_LOGGED, _TARGET, _HEADLINE = "#8c8c8c", "#56b4e9", "#0072b2"  # Okabe & Ito 2008
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}


def draw(answer: Evaluation, path: Path, *, title: str, level: float) -> None:
    """Raises HeadraceError where the file cannot be written."""
    rows = [("logged policy", answer.logged.value, answer.logged.interval, _LOGGED)]
    for e in answer.estimates:
        if e.interval is None and e.ess is not None and not e.sound and e.name not in ("Switch-DR", "DRos"):
            continue  # would only stretch the axis
        rows.append((e.name, e.value, e.interval, _HEADLINE if e.name == answer.headline else _TARGET))
    several = len(answer.positions) > 1
    with matplotlib.rc_context(_STYLE):
        height = 1.4 + 0.32 * max(len(rows), len(answer.positions) if several else 0)
        figure = Figure(figsize=(10.5 if several else 6.5, height), layout="constrained")
        all_axes = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
        _forest(all_axes[0], rows)
        all_axes[0].axvline(answer.logged.value, color=_LOGGED, linewidth=1, linestyle=":")
        all_axes[0].set_xlabel(f"reward a decision, {level:.0%} interval by user")
        if several:
            _positions(all_axes[1], answer)
        figure.suptitle(title)
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise HeadraceError(f"{path}: cannot be written: {error.strerror or error}") from None


def _forest(axes: Any, rows: list[tuple[str, float, Interval | None, str]]) -> None:
    for place, (_, value, interval, colour) in enumerate(reversed(rows)):
        if interval is not None:
            axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=4, alpha=0.5)
        axes.plot([value], [place], "o", color=colour, markersize=6, fillstyle="full" if interval else "none")
    axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
    axes.grid(axis="x")
    axes.margins(y=0.08)


def _positions(axes: Any, answer: Evaluation) -> None:
    places = [p.position for p in answer.positions]
    low = [p.value - p.interval.low if p.interval else 0.0 for p in answer.positions]
    high = [p.interval.high - p.value if p.interval else 0.0 for p in answer.positions]
    values = [p.value for p in answer.positions]
    axes.errorbar(places, values, yerr=[low, high], fmt="o", color=_HEADLINE, capsize=3, label="target, SNIPS")
    axes.plot(places, [p.logged for p in answer.positions], "o", color=_LOGGED, label="logged policy")
    axes.set_xlabel("position")
    axes.set_ylabel("reward a showing")
    axes.set_xticks(places)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(axis="y")
    axes.legend(frameon=False)
