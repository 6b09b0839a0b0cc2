"""What was shown, and what came of it, as one row a shown position: what the bias report counts.

A decision counts as learning counts it: it was shown, in the shop's order, to a user who is no crawler. Of users who
were erased nothing is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headrace.policy.behaviour import BUYS, WEIGHTS
from headrace.streams.records import Behaviour, Closed, Erased, Item, Opened, Outcome, Transitions, item_key
from headrace.streams.settings import Settings
from headrace.streams.state import short_hash

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Shelf:
    """The catalogue, C items; `counts` (C,) is what all users did with each, weighed by type."""

    ids: Sequence[str]
    categories: Sequence[str]  # "" for none
    prices: F64  # NaN where unknown
    since_ms: I64  # 0 where unknown
    attributes: dict[str, list[str]]  # by name: a text an item, "" for none
    counts: F64


@dataclass(frozen=True)
class Slots:
    """S shown positions in the order of their decisions."""

    decision: I64
    item: I64  # row of the shelf, -1 for what it holds no more
    position: I64
    arm: I64  # index into `arms`
    random: Bool  # the whole slate was drawn at random
    explored: Bool
    weight: F64  # 1 / (candidates left · propensity): by it a slot stands for an item drawn at random
    clicked: Bool  # it earned something
    bought: Bool
    arms: Sequence[str]
    first_ms: int
    last_ms: int


@dataclass
class _Decision:
    user: int
    ts: int
    arm: str
    random: bool
    slate: list[str]
    propensities: F64
    candidates: int
    explored: bytes
    shown: set[int]
    clicked: set[int] = field(default_factory=set)
    bought: set[int] = field(default_factory=set)


class Reader:
    """Takes in messages in their order; only decisions with `first_ms` ≤ time < `end_ms` count."""

    def __init__(self, settings: Settings, *, first_ms: int = 0, end_ms: int = 2**63 - 1) -> None:
        self._first, self._end = first_ms, end_ms
        self._assume_shown = settings.decisions.assume_shown
        self._found: dict[str, _Decision] = {}
        self._of_user: dict[int, list[str]] = {}
        self._counts: defaultdict[int, float] = defaultdict(float)

    def read(self, message: Transitions) -> None:
        for record in message.records:
            match record:
                case Opened():
                    self._open(record)
                case Outcome():
                    self._outcome(record)
                case Closed():
                    self._close(record)
                case Behaviour():
                    if self._first <= record.ts < self._end:
                        self._counts[record.item] += WEIGHTS.get(record.type, 1.0)
                case Erased():
                    for name in self._of_user.pop(short_hash(record.user_id), []):
                        self._found.pop(name, None)

    def _open(self, record: Opened) -> None:
        inside = self._first <= record.ts < self._end and not record.busy
        if not inside or record.recommendation_id in self._found:
            return
        if 8 * len(record.slate) != len(record.propensities) or len(record.explored) != len(record.slate):
            return
        user = short_hash(record.user_id)
        assumed = self._assume_shown and not record.shadow
        self._found[record.recommendation_id] = _Decision(
            user,
            record.ts,
            record.arm,
            record.policy == "random",
            record.slate,
            np.frombuffer(record.propensities, "<f8"),
            len(record.candidates) // 8,
            record.explored,
            set(range(len(record.slate))) if assumed else set(),
        )
        self._of_user.setdefault(user, []).append(record.recommendation_id)

    def _outcome(self, record: Outcome) -> None:
        decision = self._found.get(record.recommendation_id)
        if decision is None:
            return
        if record.busy:
            del self._found[record.recommendation_id]
            return
        positions = [p for p in record.positions if 0 <= p < len(decision.slate)]
        if record.type == "impression" or record.matched == "id":
            decision.shown.update(positions)
        if record.type in BUYS:
            decision.bought.update(positions)
        if record.type == "return":
            decision.bought.difference_update(positions)
        elif record.reward > 0:
            decision.clicked.update(positions)

    def _close(self, record: Closed) -> None:
        decision = self._found.get(record.recommendation_id)
        if decision is None:
            return
        if record.closed_as == "shown":
            decision.shown.update(p for p in record.shown if 0 <= p < len(decision.slate))
        elif record.closed_as != "erased":
            del self._found[record.recommendation_id]

    def shelf(self, items: Sequence[Item]) -> Shelf:
        """The catalogue as it is now, with what was done in the time read."""
        kept = [item for item in items if not item.removed]
        names = {name for item in kept for name, value in item.attributes.items() if isinstance(value, str)}
        return Shelf(
            [item.item_id for item in kept],
            [item.category or "" for item in kept],
            np.array([np.nan if item.price is None else item.price for item in kept], np.float64),
            np.array([item.since_ms for item in kept], np.int64),
            {
                name: [value if isinstance(value := item.attributes.get(name), str) else "" for item in kept]
                for name in sorted(names)
            },
            np.array([self._counts.get(item_key(item.item_id), 0) for item in kept], np.float64),
        )

    def slots(self, ids: Sequence[str], *, last: int | None = None) -> Slots:
        """`ids` of the shelf; of the `last` shown decisions alone, where that is said."""
        shown = sorted((d for d in self._found.values() if d.shown), key=lambda d: d.ts)
        shown = shown if last is None else shown[-last:]
        rows = {name: row for row, name in enumerate(ids)}
        arms = list(dict.fromkeys(sorted(d.arm for d in shown)))
        code = {arm: number for number, arm in enumerate(arms)}
        pairs = [(number, d, p) for number, d in enumerate(shown) for p in sorted(d.shown)]
        chance = np.array([max(d.propensities[p], 1e-12) * max(d.candidates - p, 1) for _, d, p in pairs])
        return Slots(
            decision=np.array([number for number, _, _ in pairs], np.int64),
            item=np.array([rows.get(d.slate[p], -1) for _, d, p in pairs], np.int64),
            position=np.array([p for _, _, p in pairs], np.int64),
            arm=np.array([code[d.arm] for _, d, _ in pairs], np.int64),
            random=np.array([d.random for _, d, _ in pairs], np.bool_),
            explored=np.array([bool(d.explored[p]) for _, d, p in pairs], np.bool_),
            weight=1 / chance if pairs else np.zeros(0),
            clicked=np.array([p in d.clicked for _, d, p in pairs], np.bool_),
            bought=np.array([p in d.bought for _, d, p in pairs], np.bool_),
            arms=arms,
            first_ms=shown[0].ts if shown else 0,
            last_ms=shown[-1].ts if shown else 0,
        )
