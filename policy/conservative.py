"""Learning that never costs more than a stated share of what a baseline would have earned.

Conservative exploration (Kazerouni, Ghavamzadeh, Abbasi-Yadkori and Van Roy 2017, arXiv 1611.06426): the policy may
decide as long as a lower bound of all that was earned, its next decisions counted as earning nothing, stays above
1 - α of the baseline's; else the baseline decides. Here the baseline's value is estimated too (their section 5), and
decisions come in batches, so the budget answers with a share: the policy's part of every position of the next batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from headrace.policy.base import F32, F64, U64, Arrays, Examples, Meta, Query, Slates, Steps
from headrace.policy.evaluation.gate import boundary
from headrace.policy.ranking import Ranking
from headrace.policy.slates import Choice, Mixture

Value = TypeVar("Value")


class Budget:
    """How many decisions the policy may take. Six sums, however long it runs. Rewards must not be negative in the mean.

    It compares with the baseline's mean reward so far: rewards that drift by the hour drift for both.
    """

    def __init__(self, *, loss: float = 0.05, error: float = 0.05, planned: int = 5_000) -> None:
        """`loss` is α: the largest part of the baseline's cumulative reward that may be lost, at any time. `error`: the
        chance that more is ever lost. `planned`: decisions at which the bound is closest; it holds everywhere.

        Raises ValueError for a value out of range.
        """
        if not 0 < loss < 1 or not 0 < error < 0.5 or planned < 1:
            raise ValueError("loss must lie between 0 and 1, error between 0 and 0.5, planned must be at least 1")
        self.loss, self.error, self.planned = loss, error, planned
        self._sums = np.zeros(6)  # decisions, reward and squared reward: of the policy, then of the baseline

    def observed(self, parts: F64, rewards: F64) -> None:
        """N shown decisions: the policy's part in each (1 where it decided, 0 where the baseline did, or
        `Conservative.parts`) and what each earned so far. Raises ValueError, and is unchanged, where one is not finite.
        """
        self._add(parts, rewards, decisions=1.0)

    def corrected(self, parts: F64, changes: F64) -> None:
        """What decisions that were observed before earned since, or gave back."""
        self._add(parts, changes, decisions=0.0)

    def _add(self, parts: F64, rewards: F64, *, decisions: float) -> None:
        if not np.isfinite(rewards).all() or not ((parts >= 0) & (parts <= 1)).all():
            raise ValueError("rewards must be finite and the policy's parts lie between 0 and 1")
        for at, part in ((0, parts), (3, 1 - parts)):
            earned = part * rewards
            self._sums[at : at + 3] += (part.sum() * decisions, earned.sum(), np.square(earned).sum())

    def decisions(self) -> float:
        """How many more decisions of the policy may earn nothing: ≥ 0 while the promise is kept.

        With n, r of policy and baseline and the baseline's value v, Kazerouni's condition (eq. 3) divided by v is

            r_p / v + n_b ≥ (1 - α) (n_p + n_b)        ⇔        r_p / v - c ≥ 0,   c = (1 - α) n_p - α n_b

        r_p - c v is known up to √(Σ r_p² + c² Σ r_b² / n_b²) times the boundary of a sequence; and r_p ≥ 0.
        """
        n, earned, squares, n_base, earned_base, squares_base = self._sums.tolist()
        c = (1 - self.loss) * n - self.loss * n_base
        if earned_base <= 0:
            return -c
        value = earned_base / n_base
        width = boundary(n + n_base, error=self.error, planned=self.planned)
        unsure = width * math.sqrt(squares + c**2 * squares_base / n_base**2)
        return max(earned - unsure, 0.0) / value - c

    def share(self, decisions: int) -> float:
        """The policy's share of the next `decisions`, until rewards are observed again: the longer, the smaller.

        Of B decisions s·B earn nothing at worst and (1 - s)·B the baseline's value: s = α + left / B. At the start, and
        for a policy that earns nothing for ever, it is α.
        """
        if decisions < 1:
            raise ValueError(f"decisions is {decisions}: at least one is next")
        return min(max(self.loss + self.decisions() / decisions, 0.0), 1.0)

    def arrays(self) -> Arrays:
        return {"sums": self._sums.copy()}

    def restore(self, arrays: Arrays) -> None:
        """Raises ValueError, and is unchanged, where the state is another's."""
        sums = arrays.get("sums", np.zeros(0))
        if sums.shape != (6,) or not np.isfinite(sums).all():
            raise ValueError("the state of the budget is missing or of another shape")
        self._sums = sums.astype(np.float64)


class Conservative(Ranking):
    """share · policy + (1 - share) · baseline at every position given the items above it, exactly.

    Both see every example. `observed` moves the budget and with it the share; deciding does not. The promise compares
    with the baseline as it would be served, its floor included.
    """

    name = "conservative"

    def __init__(
        self, policy: Ranking, baseline: Ranking, *, budget: Budget | None = None, batch: int = 100, most: float = 1.0
    ) -> None:
        """`batch` is how many decisions fall between two calls of `observed`; `most` caps the share, for a baseline
        that is to be measured for ever. Raises ValueError where the two do not read the same."""
        mine, other = ((p.dim, p.scalars, p.contexts, p.floor) for p in (policy, baseline))
        if mine != other:
            raise ValueError("policy and baseline differ in dim, scalars, contexts or floor: make them alike")
        if not 0 <= most <= 1 or batch < 1:
            raise ValueError("most must lie between 0 and 1, batch must be at least 1")
        super().__init__(dim=policy.dim, scalars=policy.scalars, contexts=policy.contexts, floor=policy.floor)
        self.policy, self.baseline = policy, baseline
        self.budget = budget or Budget()
        self._batch, self._most = batch, most
        self.memory = max(policy.memory, baseline.memory)
        self.learns = policy.learns or baseline.learns
        self.follows = policy.follows or baseline.follows

    @property
    def share(self) -> float:
        return min(self.budget.share(self._batch), self._most)

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        scores, choice = self.policy._ranked(query)
        _, safe = self.baseline._ranked(query)
        return scores, Mixture(choice, safe, self.share)

    def parts(self, query: Query, slates: Slates) -> F64:
        """The policy's part in each shown position (B, k), given what was shown: share · π(a) / P(a).

        Its mean is the share, and that of part × reward is the share × the policy's value, whoever proposed the item.
        Ask before the share moves: before `observed`.
        """
        there = slates.index >= 0
        rows = np.where(there, slates.index, 0)[:, :, None]
        mine, _ = self.policy.distributions(query, slates.index)
        proposed = np.take_along_axis(mine, rows, axis=2)[:, :, 0]
        parts = np.divide(self.share * proposed, slates.propensities, out=np.zeros(there.shape), where=there)
        return np.minimum(parts, 1.0)  # above 1 by rounding alone

    def observed(self, query: Query, slates: Slates, rewards: F64) -> None:
        """What a batch of slates of this very policy earned, `rewards` (B, k): the share moves."""
        there = slates.index >= 0
        self.budget.observed(self.parts(query, slates)[there], rewards[there])

    def prepare_to_learn(self) -> None:
        self.policy.prepare_to_learn()
        self.baseline.prepare_to_learn()

    def learn(self, examples: Examples) -> None:
        super().learn(examples)
        self.policy.learn(examples)
        self.baseline.learn(examples)

    def follow(self, steps: Steps) -> None:
        self.policy.follow(steps)
        self.baseline.follow(steps)

    def remember(self, examples: Examples) -> None:
        self.policy.remember(examples)
        self.baseline.remember(examples)

    def forget(self, owners: U64) -> None:
        self.policy.forget(owners)
        self.baseline.forget(owners)

    def snapshot(self) -> tuple[Arrays, Meta]:
        arrays: Arrays = {f"budget.{name}": array for name, array in self.budget.arrays().items()}
        _, meta = super().snapshot()
        for prefix, policy in self._both():
            its_arrays, its_meta = policy.snapshot()
            arrays |= {f"{prefix}.{name}": array for name, array in its_arrays.items()}
            meta |= {f"{prefix}.{name}": value for name, value in its_meta.items()}
        return arrays, meta

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        before = self.snapshot()
        try:
            super().restore(arrays, meta)
            self._restore(arrays, meta)
        except ValueError:
            self._restore(*before)
            self.learned = int(before[1]["learned"])
            raise

    def _restore(self, arrays: Arrays, meta: Meta) -> None:
        self.budget.restore(_of("budget", arrays))
        for prefix, policy in self._both():
            policy.restore(_of(prefix, arrays), _of(prefix, meta))

    def _both(self) -> tuple[tuple[str, Ranking], ...]:
        return ("policy", self.policy), ("baseline", self.baseline)

    @property
    def layout(self) -> str:
        return (
            f"{super().layout} ({self.policy.name}: {self.policy.layout}; {self.baseline.name}: {self.baseline.layout})"
        )


def _of(prefix: str, named: Mapping[str, Value]) -> dict[str, Value]:
    """What is named `prefix`.…, without the prefix."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in named.items() if name.startswith(start)}
