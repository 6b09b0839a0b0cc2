"""Bayesian linear regression, moved on by every example: what LinUCB and Thompson sampling stand on.

    A ← A + x xᵀ        b ← b + r x        θ = A⁻¹ b        (Li et al. 2010, arXiv 1003.0146, Algorithm 1; A₀ = λI)

A correction, a reward that became known later, only adds Δr x to b: the posterior is the one that learning the final
reward at once would have given.
"""

from __future__ import annotations

import numpy as np

from headrace.policy.base import F64, Arrays, Bool

LARGEST = 1e6  # of a feature or reward that is learned from: beyond it the statistics lose the digits of all others


class Ridge:
    """Float64 throughout. `precision` is A (D, D), `covariance` A⁻¹, `moment` b (D,), `theta` the mean (D,)."""

    def __init__(self, size: int, *, ridge: float, refactor_every: int = 8192) -> None:
        """`ridge` is λ. After `refactor_every` examples the covariance is computed afresh; `drift` says how far off."""
        if not (np.isfinite(ridge) and ridge > 0):
            raise ValueError(f"ridge is {ridge}: choose one above 0")
        self.size, self._every = size, refactor_every
        self.precision = np.eye(size) * ridge
        self.covariance = np.eye(size) / ridge
        self.moment = np.zeros(size)
        self.theta = np.zeros(size)
        self.since = 0  # examples since the covariance was computed afresh
        self.largest_drift = 0.0

    def learn(self, x: F64, rewards: F64, fresh: Bool) -> None:
        """x (N, D), rewards (N,), fresh (N,): see base.Examples."""
        new = np.ascontiguousarray(x[fresh])
        self.precision += new.T @ new
        self.moment += rewards @ x
        self.since += len(new)
        # A rank-N update costs 2·N·D² and loses to starting afresh at 2·D³ long before N reaches D.
        if self.since >= self._every:
            if len(new) * 4 <= self.size:
                self._update(new)
                self.largest_drift = max(self.largest_drift, self.drift())
            self.refactor()
        elif len(new) * 4 > self.size:
            self.refactor()
        elif len(new):
            self._update(new)
        self.theta = self.covariance @ self.moment

    def _update(self, new: F64) -> None:
        """Sherman–Morrison for N examples at once (Woodbury): A⁻¹ ← A⁻¹ - K S⁻¹ Kᵀ, K = A⁻¹ Xᵀ, S = I + X K."""
        k = self.covariance @ new.T
        s = np.eye(len(new)) + new @ k
        y = np.linalg.solve(np.linalg.cholesky(s), k.T)
        self.covariance -= y.T @ y

    def refactor(self) -> None:
        """A⁻¹ afresh from A."""
        inverse = np.linalg.inv(self.precision)
        self.covariance = (inverse + inverse.T) / 2
        self.theta = self.covariance @ self.moment
        self.since = 0

    def drift(self) -> float:
        """How far the maintained A⁻¹ has drifted from A: the largest entry of |A A⁻¹ - I|."""
        return float(np.abs(self.precision @ self.covariance - np.eye(self.size)).max())

    def root(self) -> F64:
        """R (D, D) with R Rᵀ = A⁻¹: |Rᵀx|² = xᵀA⁻¹x, and θ + R ε with ε ~ N(0, I) is a draw from the posterior."""
        return np.asarray(np.linalg.cholesky(self.covariance), np.float64)

    def arrays(self) -> Arrays:
        """Both matrices are symmetric: their upper halves are enough. The covariance is kept as it is, drift and all:
        computed afresh it would have other bits."""
        upper = np.triu_indices(self.size)
        return {
            "precision": self.precision[upper],
            "covariance": self.covariance[upper],
            "moment": self.moment.copy(),
            "theta": self.theta.copy(),
        }

    def restore(self, arrays: Arrays, since: int) -> None:
        """Raises ValueError where the arrays are of another size."""
        half = self.size * (self.size + 1) // 2
        wanted = {"precision": half, "covariance": half, "moment": self.size, "theta": self.size}
        for name, length in wanted.items():
            if name not in arrays or arrays[name].shape != (length,) or arrays[name].dtype != np.float64:
                raise ValueError(f"the snapshot's {name} is not float64 ({length},)")
        self.precision = _whole(arrays["precision"], self.size)
        self.covariance = _whole(arrays["covariance"], self.size)
        self.moment = arrays["moment"].copy()
        self.theta = arrays["theta"].copy()
        self.since = since


def _whole(half: F64, size: int) -> F64:
    upper = np.triu_indices(size)
    matrix = np.empty((size, size))
    matrix[upper] = half
    matrix.T[upper] = half
    return matrix


def check_features(x: F64, rewards: F64) -> None:
    """Raises ValueError where a feature or a reward is not finite or too large to learn from."""
    for name, values in (("feature", x), ("reward", rewards)):
        if len(values) and not np.abs(values).max() <= LARGEST:
            raise ValueError(f"an example's {name} is beyond {LARGEST:g}: nothing of this batch was learned")
