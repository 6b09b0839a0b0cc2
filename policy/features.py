"""What the linear models see: φ(state, item, context, scalars) → x, one row a candidate.

    x = [ √d · s ⊙ a | a | signals | context × chosen signals | context | place | 1 ]

s is the state at length 1, a the item's vector. `s ⊙ a` lets a linear model learn in which directions a user's taste
counts, `a` what is liked whoever looks. Signals are the scalars, the similarity s·a, and selected products of both. Each
block of x has a squared length near 1, so that one ridge fits all; context, place and 1 move all candidates of a
decision alike: they take that part of the reward's variance off the weights that rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.policy.base import F32, I64, Query

SCALARS: tuple[str, ...] = (
    "popularity",  # [0, 1]: behaviour.Popularity
    "co_view",  # [0, 1]: behaviour.CoOccurrence, with the latest history items
    "co_buy",  # [0, 1]
    "category_match",  # share of the last 10 history items in the item's category
    "price",  # log1p(price) / 10, 0 where unknown
    "price_gap",  # |log1p(price) - mean of the history's| / 3, at most 1
    "recency",  # 1 / (1 + place of the item in the history, latest first), 0 if absent
    "last_similarity",  # cosine with the latest history item
    "max_similarity",  # largest cosine with the last 5
    "cold",  # 1 if the item has no behaviour yet
)

_SIMILARITY = "similarity"  # s·a
_PRODUCTS = (
    (_SIMILARITY, _SIMILARITY),
    (_SIMILARITY, "popularity"),
    (_SIMILARITY, "co_view"),
    (_SIMILARITY, "category_match"),
    ("popularity", "popularity"),
    ("co_view", "co_view"),
    ("category_match", "popularity"),
    ("category_match", "max_similarity"),
    ("category_match", "price_gap"),
    ("max_similarity", "max_similarity"),
)
_WITH_CONTEXT = (_SIMILARITY, "popularity", "co_view", "category_match")

ROWS = 24  # candidates in a block of one BLAS call


def unit(states: F32) -> F32:
    """States (..., d) at length 1; a state of zeros stays one."""
    length = np.sqrt((states * states).sum(axis=-1, keepdims=True))
    return states / np.where(length > 0, length, np.float32(1))


def by_candidate(weights: F32, features: F32, out: F32 | None = None) -> F32:
    """weights (B or 1, M, K) · features (B, n, K), n a multiple of ROWS → (B, M, n).

    BLAS picks its kernel by shape, and another kernel sums in another order. Here every call has the shape
    (M, K) × (K, ROWS), and a candidate's place in it is its own index modulo ROWS: neither the batch nor n can change
    a bit of a score.
    """
    rows, n, _ = features.shape
    scores = np.empty((rows, weights.shape[1], n), np.float32) if out is None else out
    for start in range(0, n, ROWS):
        block = features[:, start : start + ROWS].transpose(0, 2, 1)
        np.matmul(weights, block, out=scores[:, :, start : start + ROWS])
    return scores


def by_row(rows: F32, weights: F32) -> F32:
    """rows (B, K) · weights (K, M) → (B, M), one call of the same shape a row: see `by_candidate`."""
    return np.matmul(rows[:, None, :], weights)[:, 0]


class FeatureMap:
    """φ for one shape of input; `blocks` says which columns of x (D,) are what."""

    def __init__(self, *, dim: int, scalars: Sequence[str] = SCALARS, contexts: int = 0) -> None:
        self.dim, self.scalars, self.contexts = dim, tuple(scalars), contexts
        column = {name: i for i, name in enumerate((*self.scalars, _SIMILARITY))}
        self._products = [(column[a], column[b]) for a, b in _PRODUCTS if a in column and b in column]
        self._with_context = [column[name] for name in _WITH_CONTEXT if name in column]
        self.signals = len(column) + len(self._products)
        sizes = {
            "taste": dim,
            "item": dim,
            "signals": self.signals,
            "context_signals": contexts * len(self._with_context),
            "context": contexts,
            "place": 1,
            "one": 1,
        }
        ends = np.cumsum(list(sizes.values())).tolist()
        self.blocks = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        self.size: int = ends[-1]
        self._root = np.float32(np.sqrt(dim))

    def joint(self, states: F32, contexts: F32, items: F32, scalars: F32, positions: I64 | None = None) -> F32:
        """x (..., D) for arrays whose leading shapes broadcast to that of `items` (..., d).

        `positions` (...,) are where the items stood, for learning; without them all are as if seen first.
        """
        x = np.empty((*items.shape[:-1], self.size), np.float32)
        taste = x[..., self.blocks["taste"]]
        np.multiply(unit(states) * self._root, items, out=taste)
        x[..., self.blocks["item"]] = items
        signals = x[..., self.blocks["signals"]]
        self._fill_signals(signals, scalars, taste.sum(axis=-1) / self._root)
        if self.contexts:
            crossed = contexts[..., :, None] * signals[..., None, self._with_context]
            x[..., self.blocks["context_signals"]] = crossed.reshape(*crossed.shape[:-2], -1)
            x[..., self.blocks["context"]] = contexts
        x[..., self.blocks["place"]] = 1.0 if positions is None else (1 / (1 + positions))[..., None]
        x[..., self.blocks["one"]] = 1.0
        return x

    def _fill_signals(self, signals: F32, scalars: F32, similarity: F32) -> None:
        m = len(self.scalars)
        signals[..., :m] = scalars
        signals[..., m] = similarity
        for i, (a, b) in enumerate(self._products, m + 1):
            np.multiply(signals[..., a], signals[..., b], out=signals[..., i])

    def prepare(self, query: Query) -> Prepared:
        """The query, ready to be scored by any number of weight vectors."""
        return Prepared(self, query)


class Prepared:
    """Scores x·w of all candidates without forming x: what belongs to the decision is folded into the weights."""

    def __init__(self, features: FeatureMap, query: Query) -> None:
        self._features = features
        self.query = query
        self.unit = unit(query.states)  # (B, d)
        similarity = by_candidate(self.unit[:, None, :], query.items)[:, 0]
        self.signals = np.empty((*query.mask.shape, features.signals + 1), np.float32)  # (B, n, signals, 1)
        features._fill_signals(self.signals, query.scalars, similarity)
        self.signals[..., -1] = 1.0

    def scores(self, weights: F32) -> F32:
        """Weight vectors (M, D) → (B, M, n)."""
        f, blocks, m = self._features, self._features.blocks, len(weights)
        of_item = weights[:, blocks["taste"]] * (self.unit * f._root)[:, None, :]
        of_item += weights[:, blocks["item"]]
        scores = by_candidate(of_item, self.query.items)
        of_signals = np.empty((len(self.unit), m, f.signals + 1), np.float32)
        of_signals[..., :-1] = weights[:, blocks["signals"]]
        of_signals[..., -1] = weights[:, blocks["one"]][:, 0] + weights[:, blocks["place"]][:, 0]
        if f.contexts:
            contexts = self.query.contexts
            crossed = weights[:, blocks["context_signals"]].reshape(m, f.contexts, -1).transpose(1, 0, 2)
            folded = by_row(contexts, crossed.reshape(f.contexts, -1)).reshape(len(contexts), m, -1)
            of_signals[:, :, f._with_context] += folded
            of_signals[..., -1] += by_row(contexts, weights[:, blocks["context"]].T)
        scores += by_candidate(of_signals, self.signals)
        return scores
