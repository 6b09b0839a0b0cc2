"""Linear bandits over φ(state, item, context, scalars): one regression, five ways to explore.

epsilon_greedy, softmax and squarecb rank by θᵀx and say how likely every candidate is; linucb adds the width of what it
does not know yet; lints draws from it. docs/policies.md says when to choose which.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from headrace.policy.base import F32, Arrays, Examples, Meta, Query
from headrace.policy.choices import EpsilonGreedy, InverseGap
from headrace.policy.fading import Fading
from headrace.policy.features import FeatureMap
from headrace.policy.ranking import Ranking
from headrace.policy.ridge import Ridge, check_features
from headrace.policy.slates import Choice, Greedy, Softmax, Votes
from headrace.policy.variants import chunks

_SERVE = "serve."


class Linear(Ranking):
    """Learns in float64, serves float32 arrays made once a version: `serving`."""

    squares = False  # whether the width needs D-LinUCB's second matrix

    def __init__(
        self,
        *,
        ridge: float = 1.0,
        discount: float = 1.0,
        change_detector: bool = False,
        outer: bool = False,
        **shape: Any,
    ) -> None:
        """`discount` γ and `change_detector`: see fading.py. `outer` adds context × item to φ."""
        super().__init__(**shape)
        self._features = FeatureMap(dim=self.dim, scalars=self.scalars, contexts=self.contexts, outer=outer)
        self._ridge, self._discount, self._detects = ridge, discount, change_detector
        self.regression, self.fading = self._new()
        self._serving: Arrays | None = None

    def _new(self) -> tuple[Ridge, Fading]:
        size, fades = self._features.size, self._discount < 1
        return (
            Ridge(size, ridge=self._ridge, fades=fades, squares=fades and self.squares),
            Fading(discount=self._discount, change_detector=self._detects, warm_up=2 * size),
        )

    @abstractmethod
    def _prepare_serving(self) -> Arrays:
        """The float32 arrays that `_rank` reads."""

    def serving(self) -> Arrays:
        if self._serving is None:
            self._serving = self._prepare_serving()
        return self._serving

    def lowered(self, shown: Query, scores: F32, states: F32, scalars: F32) -> F32:
        lower = np.empty(scalars.shape[:3], np.float32)
        for rows, variants in chunks(self._features, shown, states, scalars):
            projected = np.moveaxis(variants.scores(self._scoring()), -1, 1)
            np.subtract(scores[rows, None], self._score(projected), out=lower[rows])
        return lower

    def _scoring(self) -> F32:
        """The weight vectors (M, D) of which a score is made."""
        return self.serving()["weights"][:1]

    def _score(self, projected: F32) -> F32:
        """Scores (B, …) from the products (B, M, …) with these."""
        return projected[:, 0]

    def learn(self, examples: Examples) -> None:
        self.check(examples)
        e = examples
        x = self._features.joint(e.states, e.contexts, e.items, e.scalars, e.positions).astype(np.float64)
        check_features(x, e.rewards)
        predicted = x @ self.regression.theta if self._detects else np.zeros(len(x))
        w = self.fading.weigh(e, predicted)
        self.regression.learn(x, e.rewards, e.fresh, w.weights, fade=w.fade, squared=w.squared)
        self.learned += len(e.rewards)
        self._serving = None

    def snapshot(self) -> tuple[Arrays, Meta]:
        _, meta = super().snapshot()
        served = {_SERVE + name: array.copy() for name, array in self.serving().items()}
        for part in (self.regression, self.fading):
            arrays, plain = part.state()
            served, meta = served | arrays, meta | plain
        return served, meta

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        regression, fading = self._new()
        regression.restore(arrays, meta)
        fading.restore(arrays, meta)
        if arrays.get("serve.weights", np.zeros((0, 0))).shape[1] != self._features.size:
            raise ValueError("the snapshot lacks what serves")
        super().restore(arrays, meta)
        self.regression, self.fading = regression, fading
        # Made by the learner: a worker's own BLAS could round otherwise.
        self._serving = {
            name.removeprefix(_SERVE): array.copy() for name, array in arrays.items() if name.startswith(_SERVE)
        }

    @property
    def layout(self) -> str:
        return f"{super().layout} x={self._features.size}"


class _Estimates(Linear):
    """Explores by the estimates θᵀx alone."""

    def _prepare_serving(self) -> Arrays:
        return {"weights": self.regression.theta[None].astype(np.float32)}  # (1, D)

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        scores = np.empty(query.mask.shape, np.float32)
        for rows, prepared in self._features.chunks(query):
            scores[rows] = prepared.scores(self.serving()["weights"])[:, 0]
        return scores, self._explore(scores, query)

    @abstractmethod
    def _explore(self, scores: F32, query: Query) -> Choice:
        """π over the estimates."""


class EpsilonGreedyPolicy(_Estimates):
    """The best estimate, and with probability ε any candidate: ε comes on top of the floor."""

    name = "epsilon_greedy"

    def __init__(self, *, epsilon: float = 0.05, **linear: Any) -> None:
        """Raises ValueError unless 0 ≤ epsilon ≤ 1."""
        super().__init__(**linear)
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon is {epsilon}: choose one between 0 and 1")
        self.epsilon = epsilon

    def _explore(self, scores: F32, query: Query) -> Choice:
        return EpsilonGreedy(scores, query.mask, epsilon=self.epsilon)


class SoftmaxPolicy(_Estimates):
    """Boltzmann exploration: π(a) = exp(Q_a / τ) / Σ exp(Q / τ), Q the estimates."""

    name = "softmax"

    def __init__(self, *, temperature: float = 0.05, **linear: Any) -> None:
        """`temperature` τ is in the unit of the reward. Raises ValueError unless it is above 0."""
        super().__init__(**linear)
        if not (np.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature is {temperature}: choose one above 0")
        self.temperature = temperature

    def _explore(self, scores: F32, query: Query) -> Choice:
        return Softmax(scores / np.float32(self.temperature), query.mask, temperature=self.temperature)


class SquareCB(_Estimates):
    """Inverse gap weighting with the regression as its oracle (Foster & Rakhlin 2020, arXiv 2002.04926, Algorithm 1).

    γ = scale · t^exponent, as vowpalwabbit's --gamma_scale and --gamma_exponent; t is the weight of all examples
    learned from, faded as they are: after a change the policy explores as it did when it was young.
    """

    name = "squarecb"

    def __init__(self, *, gamma_scale: float = 10.0, gamma_exponent: float = 0.5, **linear: Any) -> None:
        """Raises ValueError unless gamma_scale > 0 and gamma_exponent ≥ 0."""
        super().__init__(**linear)
        if not (0 < gamma_scale < np.inf and 0 <= gamma_exponent < np.inf):
            raise ValueError("gamma_scale must be above 0, gamma_exponent at least 0")
        self.gamma_scale, self.gamma_exponent = gamma_scale, gamma_exponent

    def _prepare_serving(self) -> Arrays:
        gamma = self.gamma_scale * max(1.0, self.regression.count) ** self.gamma_exponent
        return super()._prepare_serving() | {"gamma": np.array([gamma])}

    def _explore(self, scores: F32, query: Query) -> Choice:
        return InverseGap(scores, query.mask, gamma=float(self.serving()["gamma"][0]))


class LinUCB(Linear):
    """θᵀx + α √(xᵀ A⁻¹ x), greedily (Li et al. 2010, arXiv 1003.0146, Algorithm 1 with one A for all items).

    With a discount the width is √(xᵀ A⁻¹ Ṽ A⁻¹ x) (D-LinUCB, Russac et al. 2019, arXiv 1909.09146, Algorithm 1).
    """

    name = "linucb"
    squares = True

    def __init__(self, *, alpha: float = 0.5, **linear: Any) -> None:
        super().__init__(**linear)
        self.alpha = alpha

    def _prepare_serving(self) -> Arrays:
        weights = np.vstack([self.regression.theta, self.regression.width_root().T])
        return {"weights": weights.astype(np.float32)}  # (1 + D, D): θ, then Wᵀ with |Wᵀx| the width

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        scores = np.empty(query.mask.shape, np.float32)
        for rows, prepared in self._features.chunks(query):
            scores[rows] = self._score(prepared.scores(self._scoring()))
        return scores, Greedy(scores, query.mask)

    def _scoring(self) -> F32:
        return self.serving()["weights"]

    def _score(self, projected: F32) -> F32:
        width: F32 = np.sqrt(np.square(projected[:, 1:]).sum(axis=1))
        return projected[:, 0] + np.float32(self.alpha) * width


class LinTS(Linear):
    """w ~ N(θ, α² A⁻¹), greedily by w (Agrawal & Goyal 2013, arXiv 1209.3352, Algorithm 1; α is their v).

    Each version brings M draws of its own, seeded by (seed, examples learned), so that π is explicit: see slates.Votes.
    """

    name = "lints"

    def __init__(
        self, *, alpha: float = 0.5, draws: int = 32, optimistic: bool = False, seed: int = 0, **linear: Any
    ) -> None:
        """`optimistic`: a draw counts as θᵀx + |wᵀx - θᵀx|. That is the upper bound of a random width α|z|√(xᵀA⁻¹x),

        z ~ N(0, 1) (RandUCB, Vaswani et al. 2020, arXiv 1910.04928, section 3, here with half a normal distribution):
        what is not known yet is tried more often, as by LinUCB, and the decisions of one batch still differ.
        """
        super().__init__(**linear)
        self.alpha, self.draws, self.optimistic, self.seed = alpha, draws, optimistic, seed

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
            if self.optimistic:
                mean = projected[:, :1]
                np.add(np.abs(projected[:, 1:] - mean), mean, out=votes[rows])
            else:
                votes[rows] = projected[:, 1:]
        return scores, Votes(votes, query.mask)
