"""Bayesian linear regression, moved on by every example: what the linear bandits stand on.

    A ← A + w x xᵀ      b ← b + w r x      θ = A⁻¹ b      (Li et al. 2010, arXiv 1003.0146, Algorithm 1; A₀ = λI)

A correction, a reward that became known later, only adds w Δr x to b: the posterior is the one that learning the final
reward at once would have given. What was learned before can fade, towards the prior (Russac et al. 2019, arXiv
1909.09146, Algorithm 1: A is their V, the squares their Ṽ):

    A ← f A + (1 - f) λI      b ← f b      Ṽ ← f² Ṽ + (1 - f²) λI
"""

from __future__ import annotations

from typing import cast

import numpy as np

from headrace.policy.base import F64, Arrays, Bool, Meta

LARGEST = 1e6  # of a feature or reward that is learned from: beyond it the statistics lose the digits of all others
_PROBE_EVERY = 256  # examples
_DRIFTED = 1e-8  # of what a probe of size 1 may come back wrong by


class Ridge:
    """Float64 throughout. `precision` is A (D, D), `moment` b (D,), `theta` the mean (D,).

    A⁻¹ is held as R Rᵀ. R moves with every example: Sherman–Morrison in square-root form, O(D²), which cannot lose its
    positive definiteness. After a large batch, and where something fades and so gets some of the prior back in every
    direction, no small update would do: then R is computed from A when somebody asks for it. When that is changes no
    bit, as A does not change before the next batch.
    """

    def __init__(
        self, size: int, *, ridge: float, fades: bool = False, squares: bool = False, refactor_every: int = 8192
    ) -> None:
        """`ridge` is λ; `fades` says that f is below 1 as a rule, `squares` that Ṽ is wanted as well.

        R is computed afresh after `refactor_every` examples, and as soon as a probe finds that it has drifted from A.
        Raises ValueError unless λ > 0.
        """
        if not (np.isfinite(ridge) and ridge > 0):
            raise ValueError(f"ridge is {ridge}: choose one above 0")
        self.size, self._ridge, self._fades, self._every = size, ridge, fades, refactor_every
        self.precision = np.eye(size) * ridge
        self.squares = np.eye(size) * ridge if squares else None
        self.moment = np.zeros(size)
        self.count = 0.0  # Σ w of the fresh examples, faded as they are
        self.since = 0  # examples since R was computed afresh
        self.refactored = 0  # times that a probe found drift
        self._root: F64 | None = None  # R; None: that of A as it is now
        self._theta: F64 | None = np.zeros(size)
        self._probe = np.where(np.arange(size) % 2, -1.0, 1.0)
        self._buffer = np.empty((size, size))

    @property
    def theta(self) -> F64:
        if self._theta is None:
            if self.since:
                root = self.root()
                self._theta = root @ (self.moment @ root)
            else:
                self._theta = np.asarray(np.linalg.solve(self.precision, self.moment), np.float64)
        return self._theta

    @property
    def covariance(self) -> F64:
        """A⁻¹ (D, D)."""
        root = self.root()
        return root @ root.T

    def root(self) -> F64:
        """R (D, D) with R Rᵀ = A⁻¹: |Rᵀx|² = xᵀA⁻¹x, and θ + R ε with ε ~ N(0, I) is a draw from the posterior."""
        if self._root is None:
            inverse = np.linalg.inv(np.linalg.cholesky(self.precision))
            self._root = np.ascontiguousarray(inverse.T, np.float64)
        return self._root

    def width_root(self) -> F64:
        """W (D, D) with |Wᵀx| the width of LinUCB: W Wᵀ = A⁻¹ Ṽ A⁻¹ (Russac et al. 2019, eq. 5), A⁻¹ without Ṽ."""
        if self.squares is None:
            return self.root()
        return cast(F64, self.covariance @ np.linalg.cholesky(self.squares))

    def learn(
        self,
        x: F64,
        rewards: F64,
        fresh: Bool,
        weights: F64 | None = None,
        *,
        fade: float = 1.0,
        squared: F64 | None = None,
    ) -> None:
        """x (N, D), rewards, fresh and weights (N,): see base.Examples.

        `fade` is f, for all that was learned before; `squared` (N,) are the weights in Ṽ, by default `weights`.
        """
        weights = np.ones(len(rewards)) if weights is None else weights
        new = x[fresh] * np.sqrt(weights[fresh])[:, None]
        before, self.since = self.since, self.since + len(new)
        # A rank-N update costs 6·N·D² and loses to starting afresh at 3·D³ long before N reaches D.
        afresh = self._fades or fade < 1 or self.since >= self._every or len(new) * 4 > self.size
        root = self.root() if len(new) and not afresh else None  # before A moves
        if fade < 1:
            self._fade(fade)
        self.moment += (weights * rewards) @ x
        self.count += float(weights[fresh].sum())
        self._theta = None
        if self.squares is not None:
            in_squares = x[fresh] * np.sqrt((weights if squared is None else squared)[fresh])[:, None]
            self.squares += in_squares.T @ in_squares
        if len(new) == 1:
            np.multiply(new.T, new, out=self._buffer)
            self.precision += self._buffer
        else:
            self.precision += new.T @ new
        if afresh:
            self.refactor()
        elif root is not None:
            self._move(root, new)
            if before // _PROBE_EVERY != self.since // _PROBE_EVERY and self.drift() > _DRIFTED:
                self.refactored += 1
                self.refactor()

    def _fade(self, fade: float) -> None:
        self.moment *= fade
        self.count *= fade
        self.precision *= fade
        self.precision.ravel()[:: self.size + 1] += (1 - fade) * self._ridge
        if self.squares is not None:
            self.squares *= fade**2
            self.squares.ravel()[:: self.size + 1] += (1 - fade**2) * self._ridge

    def _move(self, root: F64, new: F64) -> None:
        """Sherman–Morrison, A⁻¹ ← A⁻¹ - A⁻¹x xᵀA⁻¹ / s with s = 1 + xᵀA⁻¹x, for R (Potter 1963; Bierman 1977, II.8):

            R ← R - R f fᵀ / (s + √s)      f = Rᵀx

        For N examples at once the same in the directions that make S = I + FᵀF, F = Rᵀ Xᵀ, diagonal.
        """
        if len(new) > 1:
            many = (new @ root).T
            squared, directions = np.linalg.eigh(np.eye(len(new)) + many.T @ many)
            many = many @ directions
            root -= (root @ many) @ (many / (squared + np.sqrt(squared))).T
            return
        f = new[0] @ root
        s = 1 + f @ f
        np.multiply((root @ f)[:, None], f / (s + np.sqrt(s)), out=self._buffer)
        root -= self._buffer

    def refactor(self) -> None:
        """From now on R is that of A, whatever became of it."""
        self._root, self._theta, self.since = None, None, 0

    def drift(self) -> float:
        """How far R has drifted from A: the largest entry of |A R Rᵀ v - v| for one v of ones and minus ones."""
        root = self.root()
        return float(np.abs(self.precision @ (root @ (self._probe @ root)) - self._probe).max())

    def state(self) -> tuple[Arrays, Meta]:
        """Symmetric matrices by their upper halves; R, where examples have moved it: afresh it had other bits."""
        upper = np.triu_indices(self.size)
        arrays = {"precision": self.precision[upper], "moment": self.moment.copy(), "theta": self.theta.copy()}
        if self.squares is not None:
            arrays["squares"] = self.squares[upper]
        if self.since:
            arrays["root"] = self.root().copy()
        return arrays, {"since": self.since, "count": self.count}

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        """Raises ValueError where the arrays are of another size.

        What was learned with other options of fading goes on under these: without Ṽ it starts at A.
        """
        half = self.size * (self.size + 1) // 2
        wanted: dict[str, tuple[int, ...]] = {"precision": (half,), "moment": (self.size,), "theta": (self.size,)}
        optional: dict[str, tuple[int, ...]] = {"squares": (half,), "root": (self.size, self.size)}
        for name, shape in (wanted | {name: optional[name] for name in optional if name in arrays}).items():
            if name not in arrays or arrays[name].shape != shape or arrays[name].dtype != np.float64:
                raise ValueError(f"the snapshot's {name} is not float64 {shape}")
        self.precision = _whole(arrays["precision"], self.size)
        if self.squares is not None:
            self.squares = _whole(arrays.get("squares", arrays["precision"]), self.size)
        self.moment = arrays["moment"].copy()
        self._theta = arrays["theta"].copy()
        self._root = arrays["root"].copy() if "root" in arrays else None
        self.since = 0 if self._root is None else int(meta.get("since", 0))
        self.count = float(meta.get("count", 0.0))


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
