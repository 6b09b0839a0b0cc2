"""From what was committed to the demo's summary: one JSON object, and the page's figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.simulation.follow import Observer
from headrace.simulation.intervals import Estimate, by_user
from headrace.simulation.plots import Course
from headrace.simulation.report import Run
from headrace.simulation.settings import DAY_MS
from headrace.simulation.shop import Shop
from headrace.simulation.tally import Decided, Tally, last_third
from headrace.streams.configuration import effective
from headrace.streams.settings import Settings, policy_of_arm

_SPANS = 14  # of the plots over time


def make(
    settings: Settings, shop: Shop, observer: Observer, tally: Tally, *, seconds: float, speed: float, ended_ms: int
) -> Run:
    """`ended_ms` is the wall clock (Unix ms) when trading ended: outcomes sent later are not timed."""
    policy = policy_of_arm(settings, "policy")
    timed = [(offset, sent) for offset, sent in tally.outcomes if sent <= ended_ms]
    delays = observer.delays(policy, timed)
    fresh = np.array([ms for _, ms in shop.freshness])
    arms = _arms(settings, shop, last_third(tally.decided))
    planted = shop.planted
    late = len(planted.late) + len(planted.late_outcomes)
    summary = {
        "seconds": round(seconds, 3),
        "events_sent": shop.sent,
        "events_applied": tally.events_applied,
        "duplicates": tally.duplicates,
        "dead_letters": tally.dead_letters,
        "planted": {"duplicates": len(planted.duplicates), "rubbish": len(planted.rubbish), "late": late},
        "recommendations": tally.recommendations,
        "policy_versions": len({version for _, name, version, _ in observer.versions if name == policy}),
        "freshness_ms": _percentiles(fresh),
        "outcome_to_policy_ms": _percentiles(delays),
        "span": "last_third",
        "arms": {name: _as_json(e) for name, e in arms.items()},
    }
    return Run(
        summary=summary,
        window_days=settings.close_after_ms // DAY_MS,
        rate=shop.rate,
        speed=speed,
        arms=arms,
        courses=_courses(settings, shop, tally.decided),
        freshness=shop.freshness,
        outcome_to_policy=delays,
        sent_per_second=_per_second(shop.sent_at_second, seconds),
        slates_per_second=_per_second([second for second, _ in shop.freshness], seconds),
        versions=[
            ((arrival - ended_ms) / 1000 + seconds, version)
            for arrival, name, version, _ in observer.versions
            if name == policy and arrival <= ended_ms
        ],
        planted=_planted(shop, tally),
        missing=tally.found.missing,
        settings=list(effective(settings).items()),
    )


def _arms(settings: Settings, shop: Shop, decided: Sequence[Decided]) -> dict[str, Estimate]:
    """Reward per decision of every arm, and what the oracle would have earned with the same decisions."""
    found = {}
    for arm in settings.arms.shares:
        mine = [d for d in decided if d.arm == arm]
        found[arm] = by_user(_numbers(d.user_id for d in mine), np.array([d.reward for d in mine]))
    expected = _oracle(shop, decided)
    found["oracle"] = by_user(_numbers(d.user_id for d, _ in expected), np.array([o for _, o in expected]))
    return found


def _oracle(shop: Shop, decided: Sequence[Decided]) -> list[tuple[Decided, float]]:
    worth = {shown.recommendation_id: shown.oracle for shown in shop.shown}
    return [(d, worth[d.recommendation_id]) for d in decided if d.recommendation_id in worth]


def _courses(settings: Settings, shop: Shop, decided: Sequence[Decided]) -> dict[str, Course]:
    """Every arm over the shop's days, in equal spans of time."""
    if not decided:
        nothing = np.zeros(0)
        return {arm: Course(nothing, nothing, nothing, nothing) for arm in (*settings.arms.shares, "oracle")}
    times = np.array([d.opened_ts for d in decided])
    begun = shop.world_start_ms
    edges = np.linspace(begun, times.max() + 1, _SPANS + 1)
    points: dict[str, list[tuple[Decided, float]]] = {
        arm: [(d, d.reward) for d in decided if d.arm == arm] for arm in settings.arms.shares
    }
    points["oracle"] = _oracle(shop, decided)
    courses = {}
    for name, mine in points.items():
        span = np.searchsorted(edges, [d.opened_ts for d, _ in mine], side="right") - 1
        users, rewards = _numbers(d.user_id for d, _ in mine), np.array([reward for _, reward in mine])
        rows = []
        for place in range(_SPANS):
            e = by_user(users[span == place], rewards[span == place], draws=300)
            if e.decisions:
                rows.append(((edges[place] + edges[place + 1]) / 2, e.mean, e.low, e.high))
        table = np.array(rows).reshape(-1, 4).T
        courses[name] = Course((table[0] - begun) / DAY_MS, *table[1:])
    return courses


def _planted(shop: Shop, tally: Tally) -> list[tuple[str, int, int]]:
    """What was planted, how often, and how often it was found; rubbish by its kinds, too."""
    planted, found = shop.planted, tally.found
    kinds, lost = Counter(piece.kind for piece in planted.rubbish), Counter(found.lost_rubbish)
    return [
        ("duplicates", len(planted.duplicates), found.duplicates),
        ("late views", len(planted.late), found.late),
        ("late clicks", len(planted.late_outcomes), found.late_outcomes),
        (f"rubbish of {len(kinds)} kinds", len(planted.rubbish), found.rubbish),
        *((f"rubbish: {kind}", count, count - lost[kind]) for kind, count in sorted(kinds.items())),
    ]


def _numbers(users: Any) -> NDArray[np.int64]:
    return np.array([int(user[1:]) for user in users], np.int64)


def _per_second(seconds: Sequence[float], length: float) -> NDArray[np.float64]:
    whole = int(length)
    inside = [s for s in seconds if 0 <= s < whole]
    return np.bincount(np.array(inside, int), minlength=whole).astype(np.float64)


def _percentiles(ms: NDArray[np.float64]) -> dict[str, float | None]:
    if not len(ms):
        return {"p50": None, "p99": None}
    return {"p50": round(float(np.quantile(ms, 0.5)), 1), "p99": round(float(np.quantile(ms, 0.99)), 1)}


def _as_json(e: Estimate) -> dict[str, Any]:
    if not e.decisions:
        return {"decisions": 0, "reward_per_decision": None, "ci95": None}
    return {
        "decisions": e.decisions,
        "reward_per_decision": round(e.mean, 4),
        "ci95": [round(e.low, 4), round(e.high, 4)],
    }
