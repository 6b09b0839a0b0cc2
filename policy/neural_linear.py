"""Neural-linear Thompson sampling (Riquelme, Tucker & Snoek, ICLR 2018, arXiv 1802.09127, section 3 and appendix A).

    f = [ x | z - Γᵀx ]      x = φ of features.py, z = the trunk's output, Γ = what of z is linear in x
    Λ = Λ₀ + Σ f fᵀ          μ = Λ⁻¹ Σ r f
    a = a₀ + n/2             b = b₀ + ½ (Σ r² - μᵀΛμ)         σ² ~ IG(a, b)      w ~ N(μ, α² σ² Λ⁻¹)

An example's weight multiplies it in every sum, n included.

The head is exact and moves with every example; the trunk is trained now and then, on what the linear part leaves. A new
trunk makes the old sums over z meaningless: those are computed again from the memory. The sums over x hold for ever, so
examples that the memory has lost still count for the linear part. Γ makes that sound: without what is linear in x, z
adds to the linear part and does not replace it.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from headrace.policy import trunk
from headrace.policy.base import F32, F64, I64, U64, Arrays, Bool, Examples, Meta, Query
from headrace.policy.features import FeatureMap, by_candidate
from headrace.policy.memory import Memory
from headrace.policy.ranking import Ranking
from headrace.policy.ridge import Ridge, check_features
from headrace.policy.slates import Choice, Votes
from headrace.policy.variants import chunks

_A0 = _B0 = 6.0  # prior of the noise: Riquelme et al., appendix A
_CHUNK = 4096  # examples of the memory in one product
_TRUNK = "trunk."
_LARGEST_SCALE = 4.0  # of a unit, after one training
_LONGEST = 16.0  # of a unit's output weights, after any number of them: they begin at .35
_TRAINING = "headrace.policy.trunk_training"


class NeuralLinear(Ranking):
    """A wide and a deep part under one Bayesian head. Training the trunk loads torch; serving never does."""

    name = "neural_linear"

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        ridge: float = 1.0,
        draws: int = 32,
        seed: int = 0,
        memory: int = 16_384,
        first_training: int = 2_048,
        train_every: int = 16_384,
        steps: int = 128,
        outer: bool = False,
        **shape: Any,
    ) -> None:
        """The trunk is trained after `first_training` fresh examples, then each time they have doubled, then after
        every `train_every`, in `steps` steps over the latest `memory` examples."""
        super().__init__(**shape)
        self.alpha, self._ridge, self.draws, self.seed = alpha, ridge, draws, seed
        self.memory, self._first, self._every, self._steps = memory, first_training, train_every, steps
        self._features = FeatureMap(dim=self.dim, scalars=self.scalars, contexts=self.contexts, outer=outer)
        self._wide = self._features.size
        self.head = Ridge(self._wide + trunk.OUT, ridge=ridge)
        self._trunk = trunk.new(size=self._wide, dim=self.dim, seed=seed)
        self._gamma = np.zeros((self._wide, trunk.OUT), np.float32)
        self._remembered = Memory(memory)
        self._fresh = 0  # fresh examples learned
        self._trained_at = 0  # of them, when the trunk was trained last
        self._trainings = 0
        self._squares = 0.0  # Σ r²
        self._serving: Arrays | None = None

    def prepare_to_learn(self) -> None:
        # By name: whoever only serves never loads torch, and the import contract of the worker can see that.
        importlib.import_module(_TRAINING).warm_up()

    # -- learn --------------------------------------------------------------------------------------------------------

    def learn(self, examples: Examples) -> None:
        """A correction moves what its example moved: see `_counts_deep`."""
        self.check(examples)
        e = examples
        x, z = self._parts(e)
        check_features(np.concatenate([x, z], axis=1), e.rewards)
        newer, before = self._remembered.add(e)
        self._fresh += int(e.fresh.sum())
        z[~e.fresh & ~self._counts_deep(self._fresh - 1 - newer, newer >= 0)] = 0.0
        weights = np.ones(len(x)) if e.weights is None else e.weights
        self.head.learn(np.concatenate([x, z], axis=1), e.rewards, e.fresh, weights)
        self._squares += float((weights * ((before + e.rewards) ** 2 - before**2)).sum())
        self.learned += len(e.rewards)
        if self._fresh >= max(self._first, min(2 * self._trained_at, self._trained_at + self._every)):
            self._train()
        self._serving = None

    def remember(self, examples: Examples) -> None:
        self.check(examples)
        self._remembered.add(examples)

    def forget(self, owners: U64) -> None:
        self._remembered.forget(owners)

    def _parts(self, e: Any) -> tuple[F64, F64]:
        """x (N, D) and z - Γᵀx (N, OUT) of examples or of the memory."""
        x = self._features.joint(e.states, e.contexts, e.items, e.scalars, e.positions)
        z = trunk.rows(self._trunk, x, e.states)
        return x.astype(np.float64), (z - x @ self._gamma).astype(np.float64)

    def _counts_deep(self, number: I64, held: Bool) -> Bool:
        """Which fresh examples, counted from the first, are in the sums over z.

        The trunk is trained on the even ones of the memory, and its head starts from the odd ones: on examples that it
        has fitted, noise and all, z would look better than it is.
        """
        counted: Bool = (number >= self._trained_at) | (number % 2 == 1)
        return held & counted

    def _train(self) -> None:
        training = importlib.import_module(_TRAINING)
        memory, wide = self._remembered.all(), self._wide
        x = self._features.joint(memory.states, memory.contexts, memory.items, memory.scalars, memory.positions)
        residuals = memory.rewards - x @ self.head.theta[:wide]
        self._trained_at = self._fresh
        kept = self._counts_deep(self._fresh - len(x) + np.arange(len(x)), np.ones(len(x), np.bool_))
        self._trunk = training.train(
            self._trunk, self.head.theta[wide:], x[~kept], memory.states[~kept], residuals[~kept],
            memory.weights[~kept], seed=(self.seed, self._trainings), steps=self._steps,
        )  # fmt: skip
        x, z = x[kept], trunk.rows(self._trunk, x[kept], memory.states[kept])
        self._scale_trunk(z, memory.weights[kept] > 0)
        self._rebuild(x, z, memory.rewards[kept], memory.weights[kept])
        self._trainings += 1

    def _scale_trunk(self, z: F32, counted: Bool | None = None) -> None:
        """Gives |z|² the mean 1, each live unit an equal share: one ridge fits all. ReLU lets a scale pass through.
        Rows not `counted` are of nobody any more.

        A unit had its share before training. One that lost nearly all of it hardly fires any more, and stays small:
        with a full share on average it would be huge where it does fire. It stays so however often that happens.
        """
        rows = z if counted is None or counted.all() or not counted.any() else z[counted]
        size = np.sqrt(np.square(rows, dtype=np.float64).mean(axis=0))
        scale = np.minimum(1 / np.maximum(size, 1e-6) / np.sqrt(trunk.OUT), _LARGEST_SCALE).astype(np.float32)
        scale[size <= 1e-6] = 1.0
        length = np.sqrt(np.square(self._trunk["out"]).sum(axis=1) + np.square(self._trunk["out_bias"]))
        scale = np.minimum(scale, np.float32(_LONGEST) / np.maximum(length, np.float32(1e-6)))
        self._trunk["out"] *= scale[:, None]
        self._trunk["out_bias"] *= scale
        z *= scale

    def _rebuild(self, x: F32, z: F32, rewards: F64, weights: F64) -> None:
        """Γ and all sums over z afresh; the sums over x stay."""
        wide, root = self._wide, np.sqrt(weights)
        x, z, rewards = x * root.astype(np.float32)[:, None], z * root.astype(np.float32)[:, None], rewards * root
        xx, xz = np.eye(wide) * self._ridge, np.zeros((wide, trunk.OUT))
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(x), _CHUNK)]
        for c in chunks:  # float32 products of one chunk, float64 sums over them
            xx += x[c].T @ x[c]
            xz += x[c].T @ z[c]
        self._gamma = np.linalg.solve(xx, xz).astype(np.float32)
        z -= x @ self._gamma
        head = self.head
        cross, square, moment = np.zeros((wide, trunk.OUT)), np.eye(trunk.OUT) * self._ridge, np.zeros(trunk.OUT)
        for c in chunks:
            cross += x[c].T @ z[c]
            square += z[c].T @ z[c]
            moment += rewards[c] @ z[c]
        head.precision[:wide, wide:], head.precision[wide:, :wide] = cross, cross.T
        head.precision[wide:, wide:] = (square + square.T) / 2
        head.moment[wide:] = moment
        head.refactor()

    # -- serve --------------------------------------------------------------------------------------------------------

    def noise(self) -> tuple[float, float]:
        """a and b of the noise variance's posterior IG(a, b)."""
        explained = float(self.head.theta @ self.head.moment)  # μᵀΛμ
        return _A0 + self.head.count / 2, _B0 + max(0.0, self._squares - explained) / 2

    def serving(self) -> Arrays:
        """The float32 arrays that `_rank` reads. Γ is folded in: v·(z - Γᵀx) + u·x = v·z + (u - Γv)·x."""
        if self._serving is None:
            random = np.random.Generator(np.random.Philox(key=(self.seed, self.learned)))
            a, b = self.noise()
            sigma = np.sqrt(b / random.standard_gamma(a, self.draws))
            noise = random.standard_normal((self.draws, self.head.size)) @ self.head.root().T
            weights = np.vstack([self.head.theta, self.head.theta + self.alpha * sigma[:, None] * noise])
            wide, deep = weights[:, : self._wide], weights[:, self._wide :]
            wide = wide - deep @ self._gamma.T.astype(np.float64)
            self._serving = {
                "wide": wide.astype(np.float32),  # (1 + M, D): μ, then the draws
                "deep": deep.astype(np.float32),  # (1 + M, OUT)
            }
        return self._serving

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        served = self.serving()
        heads = len(served["deep"])
        weights = np.concatenate([served["wide"], self._trunk["wide"]])  # (1 + M + HIDDEN, D)
        batch, n = query.mask.shape
        scores, votes = np.empty((batch, n), np.float32), np.empty((batch, heads - 1, n), np.float32)
        for rows, prepared in self._features.chunks(query):
            projected = prepared.scores(weights)
            z = trunk.candidates(self._trunk, projected[:, heads:], prepared.unit)
            deep = by_candidate(served["deep"][None], z)  # (B, 1 + M, n)
            np.add(projected[:, 0], deep[:, 0], out=scores[rows])
            np.add(projected[:, 1:heads], deep[:, 1:], out=votes[rows])
        return scores, Votes(votes, query.mask)

    def lowered(self, shown: Query, scores: F32, states: F32, scalars: F32) -> F32:
        """The mean's scores again, trunk and all."""
        lower = np.empty(scalars.shape[:3], np.float32)
        wide, deep = self.serving()["wide"][:1], self.serving()["deep"][0]
        for rows, made in chunks(self._features, shown, states, scalars):
            np.subtract(scores[rows, None], made.scores(wide)[..., 0], out=lower[rows])
            lower[rows] -= np.matmul(trunk.variants(self._trunk, made), deep).reshape(made.shape)
        return lower

    # -- snapshot -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> tuple[Arrays, Meta]:
        _, meta = super().snapshot()
        arrays, moved = self.head.state()
        arrays |= {"gamma": self._gamma.copy()}
        arrays |= {f"serve.{name}": array.copy() for name, array in self.serving().items()}
        arrays |= {_TRUNK + name: array.copy() for name, array in self._trunk.items()}
        return arrays, meta | moved | {
            "fresh": self._fresh,
            "trained_at": self._trained_at,
            "trainings": self._trainings,
            "squares": self._squares,
        }

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        """The memory is empty afterwards: a learner fills it by `remember` before it goes on."""
        head = Ridge(self.head.size, ridge=self._ridge)
        head.restore(arrays, meta)
        if "count" not in meta:  # written before examples had weights: each counted once
            head.count = float(meta["fresh"])
        wanted = {"gamma": self._gamma} | {_TRUNK + name: array for name, array in self._trunk.items()}
        for name, mine in wanted.items():
            if name not in arrays or arrays[name].shape != mine.shape:
                raise ValueError(f"the snapshot's {name} is not {mine.shape}")
        if not {"serve.wide", "serve.deep"} <= arrays.keys():
            raise ValueError("the snapshot lacks what serves")
        super().restore(arrays, meta)
        self.head = head
        self._gamma = arrays["gamma"].copy()
        self._serving = {name: arrays[f"serve.{name}"].copy() for name in ("wide", "deep")}
        self._trunk = {name: arrays[_TRUNK + name].copy() for name in self._trunk}
        self._fresh, self._trained_at = int(meta["fresh"]), int(meta["trained_at"])
        self._trainings, self._squares = int(meta["trainings"]), float(meta["squares"])
        self._remembered = Memory(self.memory)

    @property
    def layout(self) -> str:
        return f"{super().layout} x={self._wide} z={trunk.OUT}"
