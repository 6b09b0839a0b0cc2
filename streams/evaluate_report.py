"""An evaluation as a table for people, and as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from headrace.policy.evaluation.evaluation import Estimate, Evaluation
from headrace.policy.evaluation.intervals import Interval


def as_lines(answer: Evaluation, *, log: str, target: str, level: float, notes: Sequence[str]) -> Iterator[str]:
    d, best = answer.diagnostics, answer.best
    yield f"{target}, judged by {log}: {answer.decisions:,} decisions of {answer.users:,} users"
    yield from notes
    yield (
        f"effective sample {d.ess:,.0f} ({d.share:.1%}), largest weight {d.largest:.3g}, "
        f"weights average {d.calibration:.3f} ± {d.calibration_error:.3f} (1 where propensities are true)"
    )
    if answer.slates:
        c = answer.cascade
        yield f"with all items above: effective sample {c.ess:,.0f} ({c.share:.1%}), largest weight {c.largest:.3g}"
    yield ""
    named = f"{level:.0%} interval"
    rows: list[tuple[str, ...]] = [("a decision earns", "value", named, "ESS", "largest", "decisions")]
    rows.append(("  logged policy", *_cells(answer.logged)))
    for e in answer.estimates:
        rows.append((f"{'*' if e.name == answer.headline else ' '} {e.name}", *_cells(e)))
    yield from _aligned(rows)
    yield "  (in brackets: not to be relied on, as the weights carry too little or a model speaks alone)"
    yield ""
    yield f"intervals at any sample size, and at every moment of a run ({level:.0%}):"
    for e in (answer.logged, *answer.estimates):
        if e.bernstein is not None and e.anytime is not None:
            yield f"  {e.name}: {_span(e.bernstein)} (empirical Bernstein), {_span(e.anytime)} (anytime)"
    if len(answer.positions) > 1:
        yield ""
        rows = [("a showing at position", "logged", "SNIPS", named, "ESS", "largest", "showings")]
        for p in answer.positions:
            value = _number(p.value) if p.interval else f"({_number(p.value)})"
            span = _span(p.interval)
            weights = f"{p.ess:,.0f}", f"{p.largest:.3g}"
            rows.append((f"  {p.position}", _number(p.logged), value, span, *weights, f"{p.showings:,}"))
        yield from _aligned(rows)
    yield ""
    interval = f", {level:.0%} interval {_span(best.interval)}" if best.interval else ""
    earned = _number(answer.logged.value)
    yield f"* {target} would have earned {_number(best.value)} a decision{interval}; the logged policy earned {earned}"
    yield f"  by {answer.headline}: {answer.because}"


def as_json(answer: Evaluation, *, log: str, target: str, level: float, notes: Sequence[str]) -> dict[str, Any]:
    """Numbers as they are; intervals are [low, high], null where there is none."""
    d, c = answer.diagnostics, answer.cascade
    return {
        "log": log,
        "target": target,
        "level": level,
        "decisions": answer.decisions,
        "users": answer.users,
        "headline": answer.headline,
        "because": answer.because,
        "value": answer.best.value,
        "interval": _pair(answer.best.interval),
        "logged": _as_object(answer.logged),
        "estimates": {e.name: _as_object(e) for e in answer.estimates},
        "positions": [
            {
                "position": p.position,
                "showings": p.showings,
                "logged": p.logged,
                "value": p.value,
                "interval": _pair(p.interval),
                "ess": p.ess,
                "largest_weight": p.largest,
            }
            for p in answer.positions
        ],
        "ess": d.ess,
        "ess_share": d.share,
        "largest_weight": d.largest,
        "calibration": d.calibration,
        "calibration_error": d.calibration_error,
        "cascade_ess": c.ess if answer.slates else None,
        "notes": list(notes),
    }


def _as_object(e: Estimate) -> dict[str, Any]:
    return {
        "value": e.value,
        "standard_error": e.error,
        "sound": e.sound,
        "interval": _pair(e.interval),
        "empirical_bernstein": _pair(e.bernstein),
        "anytime": _pair(e.anytime),
        "ess": e.ess,
        "largest_weight": e.largest,
        "decisions": e.decisions,
    }


def _cells(e: Estimate) -> tuple[str, ...]:
    weights = (f"{e.ess:,.0f}", f"{e.largest:.3g}") if e.ess is not None and e.largest is not None else ("–", "–")
    value = _number(e.value) if e.interval else f"({_number(e.value)})"
    return value, _span(e.interval), *weights, f"{e.decisions:,}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _span(interval: Interval | None) -> str:
    return f"{_number(interval.low)} to {_number(interval.high)}" if interval else "–"


def _pair(interval: Interval | None) -> list[float] | None:
    return [interval.low, interval.high] if interval else None


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
