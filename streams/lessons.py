"""What one message of `transitions` teaches, as rows; as arrays when a policy learns them. Pure."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import F32, F64, Examples, Steps
from headrace.streams.estimates import Table
from headrace.streams.records import Behaviour, Opened
from headrace.streams.rewards import Earned
from headrace.streams.state import short_hash

_NO_DIFFERENCE = 1e-9  # rewards are sums of a few floats: smaller differences are rounding
_LARGEST_REWARD = 1e6  # of a row, a change too: policies refuse more
_LARGEST = 100.0  # of a scalar or context feature: beyond it one example would drown all others


@dataclass(frozen=True)
class Widths:
    """What a policy's rows measure; a decision made to another measure teaches it nothing."""

    state: int  # 0: any
    context: int
    scalars: int


class Decision:
    """One decision held. Arrays stay the bytes they came as: about 2 kB, joined into batches at memory speed."""

    __slots__ = (
        "arm",
        "closed",
        "context",
        "earned",
        "encoder",
        "heard",
        "id",
        "items",
        "learned",
        "maturing",
        "mixed",
        "placement",
        "policy",
        "propensities",
        "rewards",
        "scalars",
        "shown_at",
        "size",
        "stage",
        "state",
        "table",
        "theta",
        "ts",
        "user_id",
        "version",
    )

    def __init__(
        self, opened: Opened, *, table: Table | None = None, theta: F64 | None = None, placement: int = 0
    ) -> None:
        self.user_id = opened.user_id
        self.arm, self.policy = sys.intern(opened.arm), sys.intern(opened.policy)
        self.version = opened.policy_version
        self.encoder = sys.intern(opened.encoder_version)
        self.id = int.from_bytes(hashlib.blake2b(opened.recommendation_id.encode(), digest_size=8).digest(), "little")
        self.ts = opened.ts
        self.size = len(opened.slate)
        self.state = opened.state
        self.context = opened.context
        self.items = opened.items
        self.scalars = opened.scalars
        self.propensities = opened.propensities
        self.learned = 0  # bit p: position p is an example
        self.shown_at = -1  # offset of the message that showed the first of them
        self.table, self.theta, self.placement = table, theta, placement  # by which it is learned
        self.stage = 0  # how many ends of delays.EDGES_MS its age has passed
        # Most decisions earn nothing and are heard of once: these grow when they must.
        self.rewards: dict[int, float] | None = None  # by position, as told so far
        self.earned: dict[int, list[Earned]] | None = None  # by position: what its reward is made of
        self.heard: tuple[str, ...] = ()  # outcome ids
        self.closed = False
        self.maturing = False  # it is known when to look at its rewards again
        self.mixed = False  # its outcomes came under several reward versions

    def told(self, position: int) -> float:
        return 0.0 if self.rewards is None else self.rewards.get(position, 0.0)


@dataclass(frozen=True)
class Followed:
    """A closed decision with the one that followed it, None where none did."""

    decision: Decision
    shown: tuple[int, ...]
    following: Decision | None
    elapsed_ms: int


@dataclass
class Lessons:
    """What one message teaches, in the order of its records."""

    offset: int = -1
    decisions: list[Decision] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    fresh: list[bool] = field(default_factory=list)
    first_shown: list[Decision] = field(default_factory=list)  # decisions of which nothing was shown before
    came: list[tuple[Decision, float]] = field(default_factory=list)  # rewards as they came, nothing allowed for
    followed: list[Followed] = field(default_factory=list)
    behaviour: list[Behaviour] = field(default_factory=list)
    sent_ms: list[int] = field(default_factory=list)  # of the outcomes that taught
    erased: list[str] = field(default_factory=list)  # users of whom nothing may be remembered
    unmatched: int = 0  # outcomes whose decision is not held
    misfits: int = 0  # decisions of other widths
    busy: int = 0  # decisions and outcomes of crawlers and hot users

    def strangers(self, of: Callable[[Decision], bool]) -> int:
        """Decisions first shown that are not `of` those a policy may learn from."""
        return sum(not of(decision) for decision in self.first_shown)

    def examples(self, widths: Widths, *, of: Callable[[Decision], bool] | None = None) -> Examples | None:
        """The rows as arrays, None where there are none. `of` says of which decisions; None: of all.

        Where θ of a position is known, its row has the weight θ and the reward divided by it, and counts as first.
        """
        chosen = [i for i, x in enumerate(self.decisions) if of is None or of(x)]
        n = len(chosen)
        if not n:
            return None
        d, m = widths.state, widths.scalars
        decisions = [self.decisions[i] for i in chosen]
        positions = [self.positions[i] for i in chosen]
        rows = list(zip(decisions, positions, strict=True))

        def joined(parts: list[bytes], dtype: str, width: int) -> NDArray[Any]:
            return np.frombuffer(b"".join(parts), dtype).reshape(n, width)

        contexts = joined([x.context for x in decisions], "<f4", widths.context)
        scalars = joined([x.scalars[4 * m * p : 4 * m * (p + 1)] for x, p in rows], "<f4", m)
        examples = Examples(
            states=joined([x.state for x in decisions], "<f4", d),
            contexts=contexts.clip(-_LARGEST, _LARGEST),
            items=joined([x.items[2 * d * p : 2 * d * (p + 1)] for x, p in rows], "<f2", d).astype(np.float32),
            scalars=scalars.clip(-_LARGEST, _LARGEST),
            propensities=joined([x.propensities[8 * p : 8 * (p + 1)] for x, p in rows], "<f8", 1)[:, 0],
            positions=np.array(positions, np.int64),
            rewards=np.array([self.rewards[i] for i in chosen], np.float64).clip(-_LARGEST_REWARD, _LARGEST_REWARD),
            fresh=np.array([self.fresh[i] for i in chosen], np.bool_),
            ids=np.array([(x.id + p) & 0xFFFF_FFFF_FFFF_FFFF for x, p in rows], np.uint64),
            owners=owners([x.user_id for x in decisions]),
        )
        return _finite(_unbiased(examples, decisions))

    def steps(self, widths: Widths, *, of: Callable[[Decision], bool] | None = None) -> Steps | None:
        """The closed decisions and what followed them, as arrays; None where there are none."""
        chosen = [
            x
            for x in self.followed
            if (of is None or of(x.decision)) and (x.following is None or x.following.encoder == x.decision.encoder)
        ]
        if not chosen:
            return None
        firsts = [x.decision for x in chosen]
        k = max(x.size for x in firsts)
        nexts = [x.following for x in chosen]
        after = max([1, *(x.size for x in nexts if x is not None)])
        states, contexts, items, scalars, _ = _slates(firsts, k, widths)
        next_states, next_contexts, next_items, next_scalars, next_shown = _slates(nexts, after, widths)
        shown = np.zeros((len(chosen), k), np.bool_)
        rewards, propensities = np.zeros((len(chosen), k)), np.zeros((len(chosen), k))
        for row, x in enumerate(chosen):
            at = [p for p in x.shown if p < x.decision.size]
            shown[row, at] = True
            rewards[row, at] = [x.decision.told(p) for p in at]
            propensities[row, : x.decision.size] = np.frombuffer(x.decision.propensities, "<f8")
        steps = Steps(
            states=states, contexts=contexts, items=items, scalars=scalars,
            shown=shown, rewards=rewards, propensities=propensities,
            next_states=next_states, next_contexts=next_contexts, next_items=next_items, next_scalars=next_scalars,
            next_shown=next_shown,
            elapsed_s=np.array([x.elapsed_ms / 1000 for x in chosen], np.float64),
            terminal=np.array([x is None for x in nexts], np.bool_),
            ids=np.array([x.id for x in firsts], np.uint64),
            owners=owners([x.user_id for x in firsts]),
        )  # fmt: skip
        return _finite_steps(steps)

    def erase(self, user: str) -> None:
        """Nothing of the user is learned from what came before; what comes after it is a new user's."""
        self.erased.append(user)
        kept = [i for i, decision in enumerate(self.decisions) if decision.user_id != user]
        self.decisions = [self.decisions[i] for i in kept]
        self.positions = [self.positions[i] for i in kept]
        self.rewards = [self.rewards[i] for i in kept]
        self.fresh = [self.fresh[i] for i in kept]
        self.followed = [x for x in self.followed if x.decision.user_id != user]

    def add(self, decision: Decision, position: int, reward: float, *, fresh: bool) -> None:
        self.decisions.append(decision)
        self.positions.append(position)
        self.rewards.append(reward)
        self.fresh.append(fresh)

    def show(self, decision: Decision, position: int) -> bool:
        """The position was shown: an example with the reward known so far, once. True for the first time."""
        if decision.learned >> position & 1:
            return False
        if not decision.learned:
            self.first_shown.append(decision)
            decision.shown_at = self.offset
        decision.learned |= 1 << position
        self.add(decision, position, decision.told(position), fresh=True)
        return True

    def tell(self, decision: Decision, position: int, reward: float) -> bool:
        """The position's reward is now `reward`: a correction, or for the first time shown herewith, then True."""
        before = decision.told(position)
        if reward or decision.rewards is not None:
            decision.rewards = decision.rewards or {}
            decision.rewards[position] = reward
        if self.show(decision, position):
            return True
        if abs(reward - before) > _NO_DIFFERENCE:
            self.add(decision, position, reward - before, fresh=False)
        return False


def owners(users: Sequence[str]) -> NDArray[np.uint64]:
    """By which a policy finds what it remembers of a user: a hash, so that no memory holds an id."""
    return np.array([short_hash("owner", user) for user in users], np.uint64)


def _unbiased(examples: Examples, decisions: Sequence[Decision]) -> Examples:
    """Where θ of the positions is known, a row weighs θ, its reward is divided by it, and it counts as shown first."""
    if not any(x.theta is not None for x in decisions):
        return examples
    known = np.array([x.theta is not None for x in decisions])
    pairs = zip(decisions, examples.positions.tolist(), strict=True)
    theta = np.array([1.0 if x.theta is None else x.theta[min(p, len(x.theta) - 1)] for x, p in pairs])
    return replace(
        examples,
        positions=np.where(known, 0, examples.positions),
        rewards=np.clip(examples.rewards / theta, -_LARGEST_REWARD, _LARGEST_REWARD),
        weights=theta,
    )


def _slates(
    decisions: Sequence[Decision | None], k: int, widths: Widths
) -> tuple[F32, F32, F32, F32, NDArray[np.bool_]]:
    """States, contexts, items (N, k, d), scalars (N, k, m) and which positions there are; zeros where there is none."""
    n, d, m = len(decisions), widths.state, widths.scalars
    states, contexts = np.zeros((n, d), np.float32), np.zeros((n, widths.context), np.float32)
    items, scalars = np.zeros((n, k, d), np.float32), np.zeros((n, k, m), np.float32)
    there = np.zeros((n, k), np.bool_)
    for row, x in enumerate(decisions):
        if x is not None:
            states[row], contexts[row] = np.frombuffer(x.state, "<f4"), np.frombuffer(x.context, "<f4")
            items[row, : x.size] = np.frombuffer(x.items, "<f2").reshape(x.size, d)
            scalars[row, : x.size] = np.frombuffer(x.scalars, "<f4").reshape(x.size, m)
            there[row, : x.size] = True
    return states, contexts.clip(-_LARGEST, _LARGEST), items, scalars.clip(-_LARGEST, _LARGEST), there


def _finite(examples: Examples) -> Examples | None:
    """Without the rows that hold a NaN or an infinity, None where no row is left."""
    columns = (examples.states, examples.contexts, examples.items, examples.scalars)
    good = np.logical_and.reduce([np.isfinite(column).all(axis=1) for column in columns])
    if good.all():
        return examples
    if not good.any():
        return None
    return Examples(**{name: column[good] for name, column in vars(examples).items() if column is not None})


def _finite_steps(steps: Steps) -> Steps | None:
    columns = (steps.states, steps.contexts, steps.items, steps.scalars)
    later = (steps.next_states, steps.next_contexts, steps.next_items, steps.next_scalars)
    good = np.logical_and.reduce([np.isfinite(c.reshape(len(c), -1)).all(axis=1) for c in (*columns, *later)])
    if good.all():
        return steps
    if not good.any():
        return None
    return Steps(**{name: column[good] for name, column in vars(steps).items() if column is not None})
