"""Linear bandits over φ(state, item, context, scalars): LinUCB and linear Thompson sampling."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from headrace.policy.base import F32, Arrays, Examples, Meta, Query
from headrace.policy.features import FeatureMap
from headrace.policy.ranking import Ranking
from headrace.policy.ridge import Ridge, check_features
from headrace.policy.slates import Choice, Greedy, Votes


class _Linear(Ranking):
    """Learns in float64, serves float32 arrays made once a version: `_serving`."""

    def __init__(self, *, alpha: float = 0.5, ridge: float = 1.0, **shape: Any) -> None:
        super().__init__(**shape)
        self._features = FeatureMap(dim=self.dim, scalars=self.scalars, contexts=self.contexts)
        self.alpha, self._ridge = alpha, ridge
        self.regression = Ridge(self._features.size, ridge=ridge)
        self._serving: Arrays | None = None

    @abstractmethod
    def _prepare_serving(self) -> Arrays:
        """The float32 arrays that `_rank` reads."""

    def serving(self) -> Arrays:
        if self._serving is None:
            self._serving = self._prepare_serving()
        return self._serving

    def learn(self, examples: Examples) -> None:
        self.check(examples)
        e = examples
        x = self._features.joint(e.states, e.contexts, e.items, e.scalars, e.positions).astype(np.float64)
        check_features(x, e.rewards)
        self.regression.learn(x, e.rewards, e.fresh)
        self.learned += len(e.rewards)
        self._serving = None

    def snapshot(self) -> tuple[Arrays, Meta]:
        _, meta = super().snapshot()
        served = {f"serve.{name}": array.copy() for name, array in self.serving().items()}
        return self.regression.arrays() | served, meta | {"since": self.regression.since}

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        regression = Ridge(self._features.size, ridge=self._ridge)
        regression.restore(arrays, int(meta.get("since", 0)))
        if arrays.get("serve.weights", np.zeros((0, 0))).shape[1] != self._features.size:
            raise ValueError("the snapshot lacks what serves")
        super().restore(arrays, meta)
        self.regression = regression
        # Made by the learner: a worker's own BLAS could round otherwise.
        self._serving = {name[6:]: array.copy() for name, array in arrays.items() if name.startswith("serve.")}

    @property
    def layout(self) -> str:
        return f"{super().layout} x={self._features.size}"


class LinUCB(_Linear):
    """θᵀx + α √(xᵀ A⁻¹ x), greedily (Li et al. 2010, arXiv 1003.0146, Algorithm 1 with one A for all items)."""

    name = "linucb"

    def _prepare_serving(self) -> Arrays:
        weights = np.vstack([self.regression.theta, self.regression.root().T])
        return {"weights": weights.astype(np.float32)}  # (1 + D, D): θ, then Rᵀ with A⁻¹ = R Rᵀ

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        scores = np.empty(query.mask.shape, np.float32)
        for rows, prepared in self._features.chunks(query):
            projected = prepared.scores(self.serving()["weights"])  # (B, 1 + D, n)
            width = np.sqrt(np.square(projected[:, 1:]).sum(axis=1))  # √(xᵀ A⁻¹ x) = |Rᵀ x|
            scores[rows] = projected[:, 0] + np.float32(self.alpha) * width
        return scores, Greedy(scores, query.mask)


class LinTS(_Linear):
    """w ~ N(θ, α² A⁻¹), greedily by w (Agrawal & Goyal 2013, arXiv 1209.3352, Algorithm 1; α is their v).

    Each version brings M draws of its own, seeded by (seed, examples learned), so that π is explicit: see slates.Votes.
    """

    name = "lints"

    def __init__(self, *, draws: int = 32, seed: int = 0, **linear: Any) -> None:
        super().__init__(**linear)
        self.draws, self.seed = draws, seed

    def _prepare_serving(self) -> Arrays:
        random = np.random.Generator(np.random.Philox(key=(self.seed, self.learned)))
        noise = random.standard_normal((self.draws, self._features.size))
        draws = self.regression.theta + self.alpha * noise @ self.regression.root().T
        weights = np.vstack([self.regression.theta, draws])
        return {"weights": weights.astype(np.float32)}  # (1 + M, D): θ, then the draws

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        weights = self.serving()["weights"]
        batch, n = query.mask.shape
        scores, votes = np.empty((batch, n), np.float32), np.empty((batch, len(weights) - 1, n), np.float32)
        for rows, prepared in self._features.chunks(query):
            projected = prepared.scores(weights)
            scores[rows] = projected[:, 0]
            votes[rows] = projected[:, 1:]
        return scores, Votes(votes, query.mask)
