"""What one record of `interactions` led to: computed, then made true in memory, committed, and counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from headrace.streams.clock import EventClock
from headrace.streams.insight import worth
from headrace.streams.metrics import Metrics
from headrace.streams.records import Entry
from headrace.streams.rules.exposure import Exposure


@dataclass
class Effects:
    """What one record led to, not yet true."""

    offset: int
    changes: dict[bytes, bytes | None] = field(default_factory=dict)  # changelog key -> value
    recommendations: list[tuple[str, bytes]] = field(default_factory=list)  # (user_id, JSON)
    shadow: list[tuple[str, bytes]] = field(default_factory=list)  # (user_id, JSON), for the side topic
    transitions: list[bytes] = field(default_factory=list)
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)  # metric's name, labels
    freshness: list[int] = field(default_factory=list)  # sent_ms of the triggers answered
    propensities: list[tuple[str, float]] = field(default_factory=list)
    calibration: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    rewards: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # arm -> reward, as it comes
    failed: list[tuple[Entry, Exception]] = field(default_factory=list)
    refused: list[tuple[Entry, str]] = field(default_factory=list)  # entries against a rule, with what to do
    forwarded: list[tuple[int, bytes]] = field(default_factory=list)  # (partition of `interactions`, record)
    applied: int = 0  # entries without those that failed
    expiry: dict[int, list[str]] = field(default_factory=dict)  # new registrations
    expired: list[int] = field(default_factory=list)  # buckets that were emptied
    lapses: dict[int, list[bytes]] = field(default_factory=dict)  # bucket -> changelog keys to look at then
    swept: list[tuple[int, list[bytes]]] = field(default_factory=list)  # of these buckets, keys that were looked at
    open_change: int = 0
    clock: EventClock | None = None
    exposure: Exposure | None = None


def report(effects: Effects, metrics: Metrics, *, now_ms: int) -> None:
    """Counts committed effects on the process's metrics."""
    counters = {
        "events": metrics.events,
        "outcomes": metrics.outcomes,
        "decisions": metrics.decisions,
        "closed": metrics.closed,
        "pending_capped": metrics.pending_capped,
        "busy": metrics.busy,
        "shadow": metrics.shadow_slates,
        "held_out": metrics.held_out,
        "stale_triggers": metrics.stale_triggers,
        "identities": metrics.identities,
        "forwarded": metrics.forwarded,
        "expired": metrics.expired,
    }
    for (kind, *labels), amount in effects.counts.items():
        if kind in counters:
            (counters[kind].labels(*labels) if labels else counters[kind]).inc(amount)
        elif kind == "erasures":
            metrics.erasures.inc(amount)
        elif kind in worth.COUNTED:
            worth.report((kind, *labels), amount, metrics)
    for _ in effects.refused:
        metrics.dead_letters.labels("interactions", "identity").inc()
    for _ in effects.failed:
        metrics.dead_letters.labels("interactions", "cannot_apply").inc()
    for sent_ms in effects.freshness:
        metrics.freshness.observe(max(0, now_ms - sent_ms) / 1000)
    for arm, p in effects.propensities:
        metrics.propensity.labels(arm).observe(p)
    for (arm, kind), total in effects.calibration.items():
        (metrics.calibration_expected if kind == "expected" else metrics.calibration_observed).labels(arm).inc(total)
    for arm, reward in effects.rewards.items():
        if reward >= 0:
            metrics.reward.labels(arm).inc(reward)
        else:
            metrics.reward_returned.labels(arm).inc(-reward)
