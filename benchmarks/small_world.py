"""A world small enough to know its expected rewards: users with a taste, items with an appeal that all can see.

safety.py and contamination.py let policies of the contract decide and learn in it. Nothing is hidden from the features:
what is measured there is not how well a model fits, but what happens while it learns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headrace.policy.base import Examples, Query, Slates

DIM, SCALARS = 8, ("popularity",)


@dataclass(frozen=True)
class World:
    """`rate` is about what an item earns in the mean; `personal` how much taste counts beside appeal."""

    rate: float
    candidates: int = 20
    k: int = 1
    personal: float = 1.0

    def ask(self, rows: int, random: np.random.Generator) -> tuple[Query, np.ndarray]:
        """`rows` decisions, and what each candidate would earn (rows, n)."""
        n = self.candidates
        states, items = directions(random, (rows, DIM)), directions(random, (rows, n, DIM))
        popularity = random.random((rows, n, 1), np.float32)
        taste = np.einsum("bd,bnd->bn", states, items)
        earns = self.rate * np.clip(0.5 + popularity[:, :, 0] + self.personal * taste, 0.0, 4.0)
        query = Query(
            states=states,
            contexts=np.zeros((rows, 0), np.float32),
            keys=np.broadcast_to(np.arange(1, n + 1, dtype=np.uint64), (rows, n)),
            items=items,
            scalars=popularity,
            mask=np.ones((rows, n), np.bool_),
            streams=random.integers(0, 2**63, rows, dtype=np.uint64),
        )
        return query, np.minimum(earns, 1.0)


def directions(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    vectors = random.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def earned(earns: np.ndarray, slates: Slates) -> np.ndarray:
    """The expected reward of each shown position (rows, k)."""
    return np.take_along_axis(earns, slates.index, axis=1)


def expected(earns: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The expected reward of each first position over its whole distribution (rows,)."""
    return (probabilities[:, 0] * earns).sum(axis=1)


def examples(query: Query, slates: Slates, rewards: np.ndarray, first_id: int) -> Examples:
    """What was shown and earned, `rewards` (rows, k), a row a position."""
    rows, k = slates.index.shape
    row = np.repeat(np.arange(rows), k)
    item = slates.index.ravel()
    return Examples(
        states=query.states[row],
        contexts=query.contexts[row],
        items=query.items[row, item],
        scalars=query.scalars[row, item],
        propensities=slates.propensities.ravel(),
        positions=np.tile(np.arange(k), rows),
        rewards=rewards.ravel().astype(np.float64),
        fresh=np.ones(rows * k, np.bool_),
        ids=np.arange(first_id, first_id + rows * k, dtype=np.uint64),
    )
