"""What all policies share: a query becomes scores and a kind of π, from which slates are drawn or re-scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from headrace.policy.base import F32, F64, I64, U64, Arrays, Examples, Meta, Query, Slates, Steps
from headrace.policy.bound import Bound, rescore_bound, sample_bound
from headrace.policy.constraints import Constraints
from headrace.policy.features import BLOCK, SCALARS
from headrace.policy.slates import Choice, check_floor, rescore, sample


class Ranking(ABC):
    """A policy that scores candidates. Subclasses say how by `_rank`."""

    name: str
    memory = 0
    learns = True
    follows = False

    def __init__(self, *, dim: int, scalars: Sequence[str] = SCALARS, contexts: int = 0, floor: float = 0.1) -> None:
        self.dim, self.scalars, self.contexts = dim, tuple(scalars), contexts
        self.floor = check_floor(floor)
        self.learned = 0  # examples, corrections included

    @abstractmethod
    def _rank(self, query: Query) -> tuple[F32, Choice]:
        """Scores (B, n) and π; n is a multiple of features.BLOCK."""

    def decide(self, query: Query, k: int, constraints: Constraints | None = None) -> Slates:
        padded = self._padded(query)
        scores, choice = self._ranked(padded)
        if constraints is not None:
            bound = Bound(choice, padded, scores, k, constraints)
            return sample_bound(bound, floor=self.floor, streams=query.streams)
        return sample(choice, padded.mask, scores, k, floor=self.floor, streams=query.streams)

    def distributions(self, query: Query, slates: I64, constraints: Constraints | None = None) -> tuple[F64, F64]:
        padded = self._padded(query)
        scores, choice = self._ranked(padded)
        n = query.mask.shape[1]
        if constraints is not None:
            bound = Bound(choice, padded, scores, slates.shape[1], constraints)
            probabilities = rescore_bound(bound, slates, floor=self.floor)
        else:
            probabilities = rescore(choice, padded.mask, slates, floor=self.floor)
        return probabilities[:, :, :n], scores[:, :n].astype(np.float64)

    def lowered(self, shown: Query, scores: F32, states: F32, scalars: F32) -> F32:
        """As all policies can: each circumstance is a decision of its own, among the items shown alone."""
        batch, h, k, _ = scalars.shape
        as_it_was = replace(shown, states=shown.states[:, None], scalars=shown.scalars[:, None])
        with_it = np.concatenate([as_it_was.states, states], axis=1)
        all_scalars = np.concatenate([as_it_was.scalars, scalars], axis=1)
        repeated = shown.take(np.repeat(np.arange(batch), h + 1))
        found, _ = self._rank(
            replace(
                repeated,
                states=np.ascontiguousarray(with_it.reshape(-1, self.dim)),
                scalars=np.ascontiguousarray(all_scalars.reshape(-1, k, len(self.scalars))),
            )
        )
        found = found.reshape(batch, h + 1, k)
        lower: F32 = found[:, :1] - found[:, 1:]
        return lower

    def _ranked(self, query: Query) -> tuple[F32, Choice]:
        scores, choice = self._rank(query)
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1, where=query.mask))
        if len(bad):
            raise ValueError(f"a score of decision {bad[0]} is not finite: check its state, context, items and scalars")
        return scores, choice

    def _padded(self, query: Query) -> Query:
        """Checked, contiguous, and with a whole number of blocks of candidates."""
        rows, n = query.mask.shape
        wanted = {
            "states": (rows, self.dim),
            "contexts": (rows, self.contexts),
            "keys": (rows, n),
            "items": (rows, n, self.dim),
            "scalars": (rows, n, len(self.scalars)),
            "streams": (rows,),
        }
        _check_shapes(query, wanted)
        more = -n % BLOCK if n else BLOCK
        arrays: dict[str, Any] = {
            "states": np.ascontiguousarray(query.states, np.float32),
            "contexts": np.ascontiguousarray(query.contexts, np.float32),
        }
        for name, dtype in (("items", np.float32), ("scalars", np.float32), ("mask", np.bool_)):
            array = np.ascontiguousarray(getattr(query, name), dtype)
            if more:
                array = np.concatenate([array, np.zeros((rows, more, *array.shape[2:]), dtype)], axis=1)
            arrays[name] = array
        return replace(query, **arrays)

    def prepare_to_learn(self) -> None:
        return None

    def learn(self, examples: Examples) -> None:
        self.check(examples)
        self.learned += len(examples.rewards)

    def follow(self, steps: Steps) -> None:
        return None

    def remember(self, examples: Examples) -> None:
        self.check(examples)

    def forget(self, owners: U64) -> None:
        return None

    def check(self, examples: Examples) -> None:
        """Raises ValueError where a shape is wrong or a number is not finite."""
        n = len(examples.rewards)
        wanted = {
            "states": (n, self.dim),
            "contexts": (n, self.contexts),
            "items": (n, self.dim),
            "scalars": (n, len(self.scalars)),
            "positions": (n,),
            "fresh": (n,),
            "ids": (n,),
        }
        _check_shapes(examples, wanted)
        if examples.weights is not None:
            _check_shapes(examples, {"weights": (n,)})
            if not (np.isfinite(examples.weights).all() and (examples.weights >= 0).all()):
                raise ValueError("an example's weight is not finite or negative: nothing of this batch was learned")
        for name in ("states", "contexts", "items", "scalars", "rewards"):
            if not np.isfinite(getattr(examples, name)).all():
                raise ValueError(f"an example's {name} are not finite: nothing of this batch was learned")
        if n and examples.positions.min() < 0:
            raise ValueError("an example's position is negative: nothing of this batch was learned")

    def snapshot(self) -> tuple[Arrays, Meta]:
        return {}, {"policy": self.name, "layout": self.layout, "learned": self.learned}

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        for key, mine in (("policy", self.name), ("layout", self.layout)):
            if meta.get(key) != mine:
                raise ValueError(f"the snapshot's {key} is {meta.get(key)!r}, this policy's is {mine!r}")
        self.learned = int(meta["learned"])

    @property
    def layout(self) -> str:
        """What a snapshot must agree in to be restored here."""
        return f"1 d={self.dim} c={self.contexts} m={','.join(self.scalars)}"


def _check_shapes(batch: Query | Examples, wanted: dict[str, tuple[int, ...]]) -> None:
    for name, shape in wanted.items():
        got = getattr(batch, name).shape
        if got != shape:
            raise ValueError(f"{name} have shape {got}, this policy reads {shape}")
