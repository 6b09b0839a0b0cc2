"""The contract of every policy: arrays in, arrays out.

    decide(query, k)   -> Slates, each position with its exact propensity
    learn(examples)    -> the policy moved on; the same examples in the same order give the same bits
    follow(steps)      -> the same, from whole slates and what came after them: reinforcement learning
    snapshot/restore   -> named arrays and plain numbers, nothing that executes

B = decisions, n = candidates (padded), d = state and item dimension, m = scalar features, c = context features.
`checks.yield_checks` holds what every policy must pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from headrace.policy.constraints import Constraints

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
Bool = NDArray[np.bool_]
Arrays = dict[str, NDArray[Any]]
Meta = dict[str, str | int | float]


@dataclass(frozen=True)
class Query:
    """A batch of decisions to take. Rows are independent: a decision alone and in a batch gets the same slate.

    `streams` are one 64-bit counter-based random stream a decision; draw number j of a stream depends on (stream, j)
    alone. What stands where `mask` is False has no effect. A user without history is a state of zeros, an item without
    content a vector of zeros.
    """

    states: F32  # (B, d)
    contexts: F32  # (B, c)
    keys: U64  # (B, n) item keys
    items: F32  # (B, n, d) item vectors in the state's space, of length 1 at most
    scalars: F32  # (B, n, m) per candidate: see features.SCALARS
    mask: Bool  # (B, n) False where padded
    streams: U64  # (B,)

    def take(self, rows: slice | list[int] | I64) -> Query:
        """Some of the decisions."""
        return Query(
            self.states[rows], self.contexts[rows], self.keys[rows], self.items[rows], self.scalars[rows],
            self.mask[rows], self.streams[rows],
        )  # fmt: skip


@dataclass(frozen=True)
class Slates:
    """Positions beyond a decision's number of candidates hold index -1, propensity 0.

    The policy's first choice is the candidate with the largest probability among those left, ties to the lowest index.
    """

    index: I64  # (B, k) into the candidates
    propensities: F64  # (B, k) P(this item here | the items above it)
    scores: F32  # (B, k) the policy's own score of the item
    explored: Bool  # (B, k) True where the item is not the policy's first choice among those left


@dataclass(frozen=True)
class Examples:
    """What was shown, or what changed in its reward.

    A fresh example has `fresh` True and the reward known so far (0 for an impression alone). A correction (a click, a
    purchase, a return that came later) has `fresh` False and the *change* in reward, for the same features.
    """

    states: F32  # (N, d)
    contexts: F32  # (N, c)
    items: F32  # (N, d)
    scalars: F32  # (N, m)
    propensities: F64  # (N,)
    positions: I64  # (N,)
    rewards: F64  # (N,)
    fresh: Bool  # (N,)
    ids: U64  # (N,) one id per shown position: a correction carries its example's
    weights: F64 | None = None  # (N,) ≥ 0, how much each counts in a sum of squares; None: 1 each
    owners: U64 | None = None  # (N,) whose each is, by which `Policy.forget` finds it; 0 or None: nobody's


@dataclass(frozen=True)
class Steps:
    """What followed: whole slates whose rewards are known, each with the same user's next decision.

    k = positions of the slate shown, K = of the next one; padded positions are False in `shown` and `next_shown`.
    The next slate stands for the actions of the next state: a maximum over it stays within what was logged.
    """

    states: F32  # (N, d)
    contexts: F32  # (N, c)
    items: F32  # (N, k, d)
    scalars: F32  # (N, k, m)
    shown: Bool  # (N, k)
    rewards: F64  # (N, k) by position
    propensities: F64  # (N, k)
    next_states: F32  # (N, d)
    next_contexts: F32  # (N, c)
    next_items: F32  # (N, K, d)
    next_scalars: F32  # (N, K, m)
    next_shown: Bool  # (N, K)
    elapsed_s: F64  # (N,) from this decision to the next one
    terminal: Bool  # (N,) True where no decision followed: what is `next_…` has no effect
    ids: U64  # (N,)
    owners: U64 | None = None  # (N,) as in Examples


class Policy(Protocol):
    """One policy, for one process at a time: it holds no lock.

    `memory` is how many of the latest fresh examples a restart must show to `remember` after `restore`, together with
    the corrections that came with and after them, in the batches they were learned in: then it goes on, bit for bit, as
    if it had never stopped. 0 where the snapshot alone is enough; serving never needs it.
    """

    name: str
    memory: int
    learns: bool  # whether examples change what it does
    follows: bool  # whether steps do
    dim: int  # d
    scalars: tuple[str, ...]  # m names
    contexts: int  # c
    floor: float

    def decide(self, query: Query, k: int, constraints: Constraints | None = None) -> Slates:
        """Slates with exact propensities; pure: the policy is not changed.

        `constraints` bind what is drawn, and the propensities are those of the draws so bound: see constraints.py.

        Raises ValueError where shapes disagree, or a candidate's score is not finite.
        """
        ...

    def lowered(self, shown: Query, scores: F32, states: F32, scalars: F32) -> F32:
        """How much lower (B, h, k) items would be scored under other circumstances: what explains a slate.

        `shown` are decisions with the k items of their slates as the only candidates, and `scores` (B, k) what they
        were given; `states` (B, h, d) and `scalars` (B, h, k, m) are the circumstances, h of each decision.
        """
        ...

    def distributions(self, query: Query, slates: I64, constraints: Constraints | None = None) -> tuple[F64, F64]:
        """The explicit distribution of each position given the items above it in `slates` (B, k).

        Returns probabilities (B, k, n), summing to 1 over the candidates still left, and scores (B, n). From a row's
        first -1 on its probabilities are 0. Raises ValueError where a slate names a candidate twice, or one that is not
        there.
        """
        ...

    def prepare_to_learn(self) -> None:
        """Loads now what learning would load on the way: seconds, where that is torch. Serving never needs it."""
        ...

    def learn(self, examples: Examples) -> None:
        """Learns one batch. Raises ValueError, and has learned nothing, if a number is not finite or a shape wrong."""
        ...

    def follow(self, steps: Steps) -> None:
        """Learns from what followed. Raises ValueError, and has learned nothing, where a number is not finite.

        A policy whose `follows` is False ignores them.
        """
        ...

    def remember(self, examples: Examples) -> None:
        """Takes a batch into the memory without learning from it: see `memory`."""
        ...

    def forget(self, owners: U64) -> None:
        """Takes out of memory and replay all that is of these owners: no example of theirs is learned from again.

        What they added to sums and weights stays.
        """
        ...

    def snapshot(self) -> tuple[Arrays, Meta]:
        """Everything that was learned and all that serving needs; the arrays are copies."""
        ...

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        """Becomes what `snapshot` saw. Raises ValueError, and is unchanged, where it is of another policy or shape."""
        ...
