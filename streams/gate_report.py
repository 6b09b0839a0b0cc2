"""What the gate knows, as metrics."""

from __future__ import annotations

from headrace.streams.gate import GatePart
from headrace.streams.metrics import Metrics


def report(gate: GatePart, metrics: Metrics) -> None:
    for (what, which), amount in gate.counts.items():
        if what == "promotion":
            metrics.promotions.labels(which).inc(amount)
        elif what == "rollback":
            metrics.rollbacks.labels(which).inc(amount)
    gate.counts.clear()
    for arm in gate.serves:
        for policy in set(gate.serves.values()):
            metrics.serving.labels(arm, policy).set(gate.serves[arm] == policy)
    metrics.gate_share.set(gate.share)
    for mode in ("live", "shadow"):
        metrics.live_mode.labels(mode).set(gate.live.mode == mode)
    for arm, share in gate.live.shares.told().items():
        metrics.arm_share.labels(arm).set(share)
    for policy in {*gate.frozen.ever, *gate.serves.values()}:
        metrics.frozen.labels(policy).set(policy in gate.frozen)
        metrics.promotions.labels(policy)  # a counter first seen at 1 has no increase
    for arm, (decisions, value) in gate.values().items():
        metrics.gate_decisions.labels(arm).set(decisions)
        metrics.gate_value.labels(arm).set(value)
    for arm, verdict in gate.verdicts.items():
        for bound in ("lower", "lift", "upper"):
            metrics.gate_lift.labels(arm, bound).set(getattr(verdict, bound))
