"""Who is shown, clicked and bought, against the catalogue, and how popularity and position explain it.

What a slot was drawn with is known exactly. Weighed by 1 / (n · p), n the candidates left and p the propensity, shown
slots stand for items drawn evenly from the candidates (self-normalised importance weights). So what a group earns
*drawn at random* says what its items are worth wherever they are put, and beside it stands how often they are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy.positions import LEAST, examination
from headrace.streams.insight.bias_log import F64, I64, Bool, Shelf, Slots

Figures = dict[str, Any]
_LARGEST = 12  # groups of a kind told one by one
_FAR = 1.5  # times as much as its worth, above the interval: told as a finding
_TOLD = 12  # findings about groups
_ENOUGH = 200  # shown slots below which a group is no finding
_DAY_MS = 86_400_000


def figures(slots: Slots, shelf: Shelf, *, new_days: float = 7.0) -> Figures:
    """All that the page shows, ready for JSON."""
    groups = _kinds(slots, shelf, new_days)
    tables = {kind: _groups(slots, codes, names) for kind, (codes, names) in groups.items()}
    found: Figures = {
        "decisions": len(np.unique(slots.decision)),
        "first_ms": slots.first_ms,
        "last_ms": slots.last_ms,
        "items": len(shelf.ids),
        "all": _spread(slots, np.ones(len(slots.item), np.bool_), len(shelf.ids)),
        "groups": tables,
        "positions": _positions(slots),
        "popularity": _popularity(slots, shelf),
        "arms": {
            arm: _spread(slots, slots.arm == number, len(shelf.ids))
            | {"new": _share(slots, slots.arm == number, *groups["new items"])}
            | {"popular tenth": _share(slots, slots.arm == number, *groups["popularity"])}
            for number, arm in enumerate(slots.arms)
        },
    }
    return found | {"findings": _findings(found)}


# -- groups -----------------------------------------------------------------------------------------------------------


def _kinds(slots: Slots, shelf: Shelf, new_days: float) -> dict[str, tuple[I64, list[str]]]:
    """By kind: the group of every item of the shelf (C,), and the groups' names."""
    categories = list(shelf.categories)
    if len(set(categories)) > _LARGEST:
        categories = [name.partition("/")[0] for name in categories]
    kinds = {"category": _named(categories)}
    for name, values in shelf.attributes.items():
        if len({*values} - {""}) > 1:
            kinds[name] = _named(values)
    if np.isfinite(shelf.prices).any():
        kinds["price"] = _bands(shelf.prices)
    new = (slots.last_ms - shelf.since_ms < new_days * _DAY_MS).astype(np.int64)
    kinds["new items"] = 1 - new, [f"known for at most {new_days:g} days", "older"]
    kinds["popularity"] = _deciles(shelf.counts)
    return kinds


def _named(values: Sequence[str]) -> tuple[I64, list[str]]:
    """The largest groups by name, the others together."""
    names, codes, sizes = np.unique(np.array([v or "none" for v in values]), return_inverse=True, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    if len(order) > _LARGEST:
        rank = np.minimum(np.argsort(order, kind="stable"), _LARGEST - 1)
        return rank[codes].astype(np.int64), [*names[order[: _LARGEST - 1]].tolist(), "all others"]
    return np.argsort(order, kind="stable")[codes].astype(np.int64), names[order].tolist()


def _bands(prices: F64) -> tuple[I64, list[str]]:
    """Fifths of the catalogue by price."""
    known = prices[np.isfinite(prices)]
    edges = np.unique(np.quantile(known, [0.2, 0.4, 0.6, 0.8]))
    codes = np.where(np.isfinite(prices), np.searchsorted(edges, np.nan_to_num(prices), side="left"), len(edges) + 1)
    names = [f"up to {edge:,.2f}" for edge in edges] + [f"above {edges[-1]:,.2f}", "no price"]
    return codes.astype(np.int64), names if (codes > len(edges)).any() else names[:-1]


def _deciles(counts: F64) -> tuple[I64, list[str]]:
    """Tenths of the items that anybody did anything with, the most popular first; the others apart."""
    rank = np.argsort(np.argsort(-counts, kind="stable"), kind="stable")
    known = int((counts > 0).sum())
    codes = np.where(counts > 0, np.minimum(rank * 10 // max(known, 1), 9), 10)
    names = ["most popular tenth", *(f"tenth {i}" for i in range(2, 11)), "nothing known"]
    return codes.astype(np.int64), names


def _groups(slots: Slots, codes: I64, names: Sequence[str]) -> list[Figures]:
    there = slots.item >= 0
    group = np.where(there, codes[np.maximum(slots.item, 0)] if len(codes) else 0, len(names))
    size = np.bincount(codes, minlength=len(names))[: len(names)]
    overall = _drawn(slots, there)["rate"]
    rows = []
    for number, name in enumerate(names):
        mine = group == number
        drawn = _drawn(slots, mine)
        share = size[number] / max(len(codes), 1)
        shown = mine.sum() / max(there.sum(), 1)
        rows.append(
            {
                "name": name,
                "items": int(size[number]),
                "catalogue": _round(share),
                "shown": _round(shown),
                "clicked": _round(_of(mine, slots.clicked & there)),
                "bought": _round(_of(mine, slots.bought & there)),
                "slots": int(mine.sum()),
                "rate": _rate(slots, mine),
                "drawn": drawn,
                "shown_times": _round(shown / share) if share else None,
                "worth_times": _round(drawn["rate"] / overall) if drawn["rate"] is not None and overall else None,
                "worth_low": _round(drawn["low"] / overall) if drawn["low"] is not None and overall else None,
                "worth_high": _round(drawn["high"] / overall) if drawn["high"] is not None and overall else None,
            }
        )
    return [row for row in rows if row["items"] or row["slots"]]


def _drawn(slots: Slots, mine: Bool) -> Figures:
    """Clicks an item drawn at random would get: rate, 95 % interval, effective number of slots."""
    w, clicked = slots.weight[mine], slots.clicked[mine].astype(np.float64)
    total = float(w.sum())
    if total <= 0:
        return {"rate": None, "low": None, "high": None, "slots": 0.0}
    rate = float(w @ clicked) / total
    effective = total**2 / float(w @ w)
    # Nothing in few slots is not known to be nothing: two clicks and two others more (Agresti & Coull 1998).
    centre = (rate * effective + 2) / (effective + 4)
    spread = max(float(np.sqrt(np.square(w * (clicked - rate)).sum())) / total, 0.0)
    margin = 1.96 * max(spread, float(np.sqrt(centre * (1 - centre) / (effective + 4))))
    return {
        "rate": _round(rate),
        "low": _round(max(centre - margin, 0.0)),
        "high": _round(min(centre + margin, 1.0)),
        "slots": round(effective, 1),
    }


# -- spread, positions, popularity ------------------------------------------------------------------------------------


def _spread(slots: Slots, mine: Bool, items: int) -> Figures:
    """How evenly the catalogue is shown, and what comes of it."""
    counts = np.bincount(slots.item[mine & (slots.item >= 0)], minlength=items)
    return {
        "decisions": len(np.unique(slots.decision[mine])),
        "shown": int(mine.sum()),
        "clicked": int((slots.clicked & mine).sum()),
        "bought": int((slots.bought & mine).sum()),
        "coverage": _round(float((counts > 0).mean())) if items else 0.0,
        "gini": _round(gini(counts)),
        "rate": _rate(slots, mine),
    }


def gini(counts: NDArray[Any]) -> float:
    """0: all alike; near 1: one has all. Of counts (C,) ≥ 0."""
    ordered = np.sort(counts.astype(np.float64))
    total = ordered.sum()
    if not total:
        return 0.0
    n = len(ordered)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def _positions(slots: Slots) -> list[Figures]:
    places = int(slots.position.max()) + 1
    even = slots.random if int((slots.random & slots.clicked).sum()) >= LEAST else slots.random | slots.explored
    shown = np.bincount(slots.position[even], minlength=places)
    clicked = np.bincount(slots.position[even & slots.clicked], minlength=places)
    theta = examination(shown.astype(np.int64), clicked.astype(np.int64))
    return [
        {
            "position": place,
            "slots": int((slots.position == place).sum()),
            "rate": _rate(slots, slots.position == place),
            "drawn": _drawn(slots, slots.position == place),
            "even_slots": int(shown[place]),
            "examination": _round(float(theta[place])) if clicked.sum() >= LEAST else None,
        }
        for place in range(places)
    ]


def _popularity(slots: Slots, shelf: Shelf) -> Figures:
    """Rank correlations over items: how far popularity goes with being shown, and with being worth it."""
    items = len(shelf.ids)
    there = slots.item >= 0
    shown = np.bincount(slots.item[there], minlength=items)
    weight = np.bincount(slots.item[there], slots.weight[there], minlength=items)
    clicks = np.bincount(slots.item[there], (slots.weight * slots.clicked)[there], minlength=items)
    tried = weight > 0
    worth = clicks[tried] / weight[tried]
    return {
        "with_shown": _correlation(shelf.counts, shown),
        "with_worth": _correlation(shelf.counts[tried], worth),
    }


def _correlation(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Spearman's ρ; None where one of the two never changes."""
    if len(a) < 3 or len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return None
    return _round(float(np.corrcoef(_ranks(a), _ranks(b))[0, 1]))


def _ranks(values: NDArray[Any]) -> F64:
    """Mean ranks of equal values."""
    _, codes, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[codes]


# -- findings ---------------------------------------------------------------------------------------------------------


def _findings(f: Figures) -> list[str]:
    """What stands out, in words: the farthest off first."""
    said: list[tuple[float, str]] = []
    for kind, rows in f["groups"].items():
        for row in rows:
            times, low, high = row["shown_times"], row["worth_low"], row["worth_high"]
            if times is None or low is None or high is None:
                continue
            name = row["name"] if kind in ("new items", "popularity") else f"{kind} {row['name']}"
            if row["slots"] >= _ENOUGH and times > _FAR * high:
                what, off = "more often than clicks on it warrant", times / high
            elif times * _FAR < low:
                what, off = "less often than clicks on it warrant", low / max(times, 1e-3)
            else:
                continue
            line = (
                f"{name}: shown {times:.2f} times its share of the catalogue; drawn at random it gets"
                f" {row['worth_times']:.2f} ({low:.2f} to {high:.2f}) times the clicks of all items: {what}"
            )
            said.append((off, line))
    told = [line for _, line in sorted(said, reverse=True)[:_TOLD]]
    places = [row for row in f["positions"] if row["examination"] is not None]
    if len(places) > 1 and places[-1]["examination"] < 0.8:
        told.append(
            f"position {places[-1]['position'] + 1} is looked at {places[-1]['examination']:.2f} times as often as the"
            " first: clicks there count for more than they seem"
        )
    return told


def _share(slots: Slots, mine: Bool, codes: I64, names: Sequence[str]) -> float:
    """Of the slots, how many hold an item of the first group."""
    there = mine & (slots.item >= 0)
    return _round(_of(codes[slots.item[there]] == 0, np.ones(there.sum(), np.bool_)))


def _of(mine: Bool, whole: Bool) -> float:
    return float((mine & whole).sum() / max(whole.sum(), 1))


def _rate(slots: Slots, mine: Bool) -> float | None:
    return _round(float(slots.clicked[mine].mean())) if mine.any() else None


def _round(value: float) -> float:
    return round(float(value), 4)
