"""The rules in force at a placement, applied to the candidates of its decisions: what a policy must keep to, and what
became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from headrace.policy.base import F32, I64, Bool
from headrace.policy.constraints import Cap, Constraints, Pin, Quota
from headrace.streams.rules.exposure import Exposure, Plan, Share
from headrace.streams.rules.in_force import InForce, Rules
from headrace.streams.rules.logged import pack
from headrace.streams.rules.personal import shown_often
from headrace.streams.state import UserState

_NAMED = 10  # ids of rules that a slate too short is told with


@dataclass(frozen=True)
class Bound:
    """A batch of decisions at one placement under its rules; rows and candidates as in the query."""

    placement: str
    force: InForce
    ks: list[int]  # places of each slate
    constraints: Constraints | None
    plans: list[list[Plan]]  # by decision, then by share in force

    def owing(self) -> Iterator[tuple[str, Bool, Bool]]:
        """Shares of which a decision had to hold some: id, members by row, and which decisions (B,)."""
        for at, (rule_id, members, _, _, _) in enumerate(self.force.shares):
            owed = np.array([plans[at].least > 0 for plans in self.plans], np.bool_)
            if owed.any():
                yield rule_id, members, owed

    def restricts_first(self, i: int, candidates: int) -> bool:
        """Whether the first position of a decision may be drawn from less than all of its candidates."""
        if self.force.pins:
            return True
        return sum(plan.least for plan in self.plans[i]) >= max(min(self.ks[i], candidates), 1)

    def logged(self, i: int, mask: Bool) -> bytes:
        """The constraints of a decision over the candidates of its mask (n,); empty where it has none."""
        return b"" if self.constraints is None else pack(self.constraints, i, mask, places=self.ks[i])

    def take(self, members: list[int]) -> Bound:
        constraints = None if self.constraints is None else self.constraints.take(members)
        plans = [self.plans[i] for i in members]
        return replace(self, ks=[self.ks[i] for i in members], constraints=constraints, plans=plans)


@dataclass(frozen=True)
class Kept:
    """What the rules came to in one slate: ids of those that bound it, and of those that could not be met."""

    bound: list[str]
    unmet: list[str]


def bind(
    force: InForce, placement: str, rows: I64, mask: Bool, ks: list[int], *, exposure: Exposure, penalty: F32 | None
) -> Bound:
    """`rows` and `mask` (B, n) of one placement's candidates; `mask` loses those that a cap of none leaves out.

    `exposure` plans the decisions in their order. `penalty` (B,): see Constraints.
    """
    shares = shares_of(force)
    by_share = [exposure.plans(placement, share, ks) for share in shares]
    plans = [list(plans) for plans in zip(*by_share, strict=True)] if shares else [[] for _ in ks]
    caps, quotas = [], []
    for _, groups, most in force.caps:
        caps.append(Cap(groups.take(rows), np.full(len(rows), most, np.int64)))
    for at, (_, members, _, _, _) in enumerate(force.shares):
        inside = members.take(rows)
        least, at_most = np.array(by_share[at], np.int64).T
        if least.any():
            quotas.append(Quota(inside, least))
        if (at_most < np.array(ks)).any():
            caps.append(Cap(inside.astype(np.int32) - 1, at_most))
    for cap in caps:
        none = np.flatnonzero(cap.most <= 0)
        if len(none):
            mask[none] &= cap.groups[none] < 0
    longest = max(ks, default=0)
    pins = tuple(Pin(position, members.take(rows)) for _, position, members in force.pins if position < longest)
    boosts = None if force.boosts is None else force.boosts.take(rows)
    if boosts is None and penalty is None and not (caps or quotas or pins):
        return Bound(placement, force, ks, None, plans)
    constraints = Constraints(boosts=boosts, penalty=penalty, caps=tuple(caps), pins=pins, quotas=tuple(quotas))
    return Bound(placement, force, ks, constraints, plans)


def shares_of(force: InForce) -> list[Share]:
    return [Share(rule_id, least, most, window) for rule_id, _, least, most, window in force.shares]


def too_often(force: InForce, state: UserState, rows: dict[int, int], *, now: int) -> list[int]:
    """Rows of the items that a frequency cap keeps from this user now (ms)."""
    out = []
    for _, members, most, within in force.frequency:
        for key in shown_often(state, most=most, since=(now - within) // 1000):
            row = rows.get(key)
            if row is not None and (members is None or members[row]):
                out.append(row)
    return out


def watched_ms(rules: Rules, placements: Iterable[str], now: int) -> int:
    """How far back the frequency caps in force look; 0 where there are none."""
    return max((within for name in placements for _, _, _, within in rules.at(name, now).frequency), default=0)


def settle(bound: Bound, chosen: I64, sizes: Sequence[int], exposure: Exposure) -> list[Kept]:
    """What became of the rules, by decision; the accounts learn what was given.

    `chosen` (B, k): rows of the catalogue by position, of which the first `sizes` count.
    """
    force = bound.force
    told: list[Kept] = [Kept([], []) for _ in sizes]
    there = np.arange(chosen.shape[1]) < np.array(sizes)[:, None]
    for rule_id, position, members in force.pins:
        if position >= chosen.shape[1]:
            continue
        held = members[chosen[:, position]] & there[:, position]
        for kept, k, met in zip(told, bound.ks, held.tolist(), strict=True):
            if position < k:
                (kept.bound if met else kept.unmet).append(rule_id)
    for cap, i in zip(*_reached(force, chosen, there), strict=True):
        told[i].bound.append(force.caps[cap][0])
    for at, (share, (_, members, _, _, _)) in enumerate(zip(shares_of(force), force.shares, strict=True)):
        placed = (members[chosen] & there).sum(axis=1).tolist()
        plans = [planned[at] for planned in bound.plans]
        exposure.settle_all(bound.placement, share, bound.ks, plans, placed, sizes)
        for kept, k, (least, at_most), n in zip(told, bound.ks, plans, placed, strict=True):
            if n < least:
                kept.unmet.append(share.rule_id)
            elif least or at_most < k:
                kept.bound.append(share.rule_id)
    for kept, k, size in zip(told, bound.ks, sizes, strict=True):
        if size < k:
            shortening = [*force.excluding, *(rule_id for rule_id, _, _ in force.caps)]
            kept.unmet.extend(rule_id for rule_id in shortening[:_NAMED] if rule_id not in kept.unmet)
    return told


def _reached(force: InForce, chosen: I64, there: Bool) -> tuple[list[int], list[int]]:
    """Which caps, in their order, have their most in which slates (B, k), of which `there` counts."""
    if not force.caps:
        return [], []
    groups = np.stack([groups.take(chosen.T) for _, groups, _ in force.caps])  # (C, k, B)
    groups[:, ~there.T] = -1
    most = np.array([most for _, _, most in force.caps])
    full = (groups >= 0).sum(axis=1) >= most[:, None]  # all that one may need, of whatever group
    for cap in np.flatnonzero((groups.max(axis=(1, 2)) > 0) & (most > 1)).tolist():  # of several groups
        same = groups[cap, :, None] == groups[cap, None, :]
        full[cap] &= ((same & (groups[cap] >= 0)).sum(axis=0) >= most[cap]).any(axis=0)
    caps, rows = np.nonzero(full)
    return caps.tolist(), rows.tolist()
