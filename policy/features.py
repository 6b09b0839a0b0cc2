"""What the linear models see: φ(state, item, context, scalars) → x, one row a candidate.

    x = [ √d · s ⊙ a | a | signals | context × chosen signals | context or context × a | place | 1 ]

s is the state at length 1, a the item's vector. `s ⊙ a` lets a linear model learn in which directions a user's taste
counts, `a` what is liked whoever looks. Signals are the scalars, the similarity s·a, and selected products of both.
Each block of x has a squared length near 1, so that one ridge fits all; context, place and 1 move all candidates of a
decision alike: they take that part of the reward's variance off the weights that rank. context × a, the outer product,
is there on demand: with one-hot item vectors it gives every item weights of its own over the context, as the disjoint
LinUCB has them (Li et al. 2010), and the other blocks make that the hybrid one. It stands instead of the context alone,
which could only say what all items share, and would take part of what each has to learn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    "own_count",  # log(1 + how often the user took the item) / log 21, at most 1
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
    ("own_count", "own_count"),
    ("own_count", "popularity"),
)
_WITH_CONTEXT = (_SIMILARITY, "popularity", "co_view", "category_match")

BLOCK = 40  # candidates in one BLAS call: 120, the default number of candidates, is three of them
_ROWS = 16  # decisions scored at once, and more where they are small:
_CHUNK = _ROWS * 3 * BLOCK * 64  # numbers of their items' vectors that stay in the cache


def unit(states: F32) -> F32:
    """States (..., d) at length 1; a state of zeros stays one."""
    length = np.sqrt((states * states).sum(axis=-1, keepdims=True))
    scaled: F32 = np.divide(states, length, out=np.zeros_like(states), where=length > 0)
    return scaled


def by_candidate(weights: F32, features: F32) -> F32:
    """weights (B or 1, M, K) · features (B, K, n), n a multiple of BLOCK → (B, M, n).

    BLAS picks its kernel by shape, and another kernel sums in another order. Here every call has the shape
    (M, K) × (K, BLOCK), and a candidate's place in it is its own index modulo BLOCK: neither the batch nor n can change
    a bit of a score.
    """
    rows, _, n = features.shape
    scores = np.empty((rows, weights.shape[1], n), np.float32)
    for start in range(0, n, BLOCK):
        np.matmul(weights, features[:, :, start : start + BLOCK], out=scores[:, :, start : start + BLOCK])
    return scores


def by_row(rows: F32, weights: F32) -> F32:
    """rows (B, K) · weights (K, M) → (B, M), one call of the same shape a row: see `by_candidate`."""
    product: F32 = np.matmul(rows[:, None, :], weights)
    return product[:, 0]


class FeatureMap:
    """φ for one shape of input; `blocks` says which columns of x (D,) are what."""

    def __init__(self, *, dim: int, scalars: Sequence[str] = SCALARS, contexts: int = 0, outer: bool = False) -> None:
        self.dim, self.scalars, self.contexts = dim, tuple(scalars), contexts
        column = {name: i for i, name in enumerate((*self.scalars, _SIMILARITY))}
        self._products = [(column[a], column[b]) for a, b in _PRODUCTS if a in column and b in column]
        self.with_context = [column[name] for name in _WITH_CONTEXT if name in column]
        self.outer = outer and contexts > 0
        self.signals = len(column) + len(self._products)
        sizes = {
            "taste": dim,
            "item": dim,
            "signals": self.signals,
            "context_signals": contexts * len(self.with_context),
            "context": 0 if self.outer else contexts,
            "outer": contexts * dim if self.outer else 0,
            "place": 1,
            "one": 1,
        }
        ends = np.cumsum(list(sizes.values())).tolist()
        self.blocks = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        self.size: int = ends[-1]
        self.root = np.float32(np.sqrt(dim))

    def joint(self, states: F32, contexts: F32, items: F32, scalars: F32, positions: I64 | None = None) -> F32:
        """x (..., D) for arrays whose leading shapes broadcast to that of `items` (..., d).

        `positions` (...,) are where the items stood, for learning; without them all are as if seen first.
        """
        x = np.empty((*items.shape[:-1], self.size), np.float32)
        taste = x[..., self.blocks["taste"]]
        np.multiply(unit(states) * self.root, items, out=taste)
        x[..., self.blocks["item"]] = items
        signals = x[..., self.blocks["signals"]]
        self.fill_signals(signals, scalars, taste.sum(axis=-1) / self.root)
        if self.contexts:
            crossed = contexts[..., :, None] * signals[..., None, self.with_context]
            x[..., self.blocks["context_signals"]] = crossed.reshape(*crossed.shape[:-2], -1)
            if not self.outer:
                x[..., self.blocks["context"]] = contexts
        if self.outer:
            outer = contexts[..., :, None] * items[..., None, :]
            x[..., self.blocks["outer"]] = outer.reshape(*outer.shape[:-2], -1)
        x[..., self.blocks["place"]] = 1.0 if positions is None else (1 / (1 + positions))[..., None]
        x[..., self.blocks["one"]] = 1.0
        return x

    def fill_signals(self, signals: F32, scalars: F32, similarity: F32) -> None:
        """`signals` (..., S) from `scalars` (..., m) and `similarity` (...,); any strides will do."""
        m = len(self.scalars)
        signals[..., :m] = scalars
        signals[..., m] = similarity
        for i, (a, b) in enumerate(self._products, m + 1):
            np.multiply(signals[..., a], signals[..., b], out=signals[..., i])

    def chunks(self, query: Query) -> Iterator[tuple[slice, Prepared]]:
        """The query's rows, a few at a time, ready to be scored by weight vectors. n is a multiple of BLOCK.

        A chunk's products stay in the cache; a whole batch's would not, and scoring takes up to twice as long.
        """
        at_once = max(_ROWS, _CHUNK // max(1, query.mask.shape[1] * self.dim))
        for start in range(0, len(query.states), at_once):
            rows = slice(start, start + at_once)
            yield rows, Prepared(self, query, rows)


class Prepared:
    """Scores w·x of all candidates without forming x: what belongs to the decision is folded into the weights.

    Features stand before candidates, which is how BLAS likes them: items (B, d, n), signals and a 1 (B, S + 1, n).
    """

    def __init__(self, features: FeatureMap, query: Query, rows: slice) -> None:
        self._features = features
        self.unit = unit(query.states[rows])  # (B, d)
        self.contexts = query.contexts[rows]
        self._items = np.ascontiguousarray(query.items[rows].transpose(0, 2, 1))
        self._signals = np.empty((len(self.unit), features.signals + 1, query.mask.shape[1]), np.float32)
        similarity = by_candidate(self.unit[:, None, :], self._items)[:, 0]
        features.fill_signals(self._signals[:, :-1].transpose(0, 2, 1), query.scalars[rows], similarity)
        self._signals[:, -1] = 1.0

    def scores(self, weights: F32) -> F32:
        """Weight vectors (M, D) → (B, M, n)."""
        f, blocks, m = self._features, self._features.blocks, len(weights)
        of_item = weights[:, blocks["taste"]] * (self.unit * f.root)[:, None, :]
        of_item += weights[:, blocks["item"]]
        if f.outer:
            crossed = weights[:, blocks["outer"]].reshape(m, f.contexts, f.dim).transpose(1, 0, 2)
            of_item += by_row(self.contexts, crossed.reshape(f.contexts, -1)).reshape(-1, m, f.dim)
        of_signals = np.empty((len(self.unit), m, f.signals + 1), np.float32)
        of_signals[..., :-1] = weights[:, blocks["signals"]]
        of_signals[..., -1] = weights[:, blocks["one"]][:, 0] + weights[:, blocks["place"]][:, 0]
        if f.contexts:
            crossed = weights[:, blocks["context_signals"]].reshape(m, f.contexts, -1).transpose(1, 0, 2)
            folded = by_row(self.contexts, crossed.reshape(f.contexts, -1))
            of_signals[:, :, f.with_context] += folded.reshape(len(folded), m, -1)
            if not f.outer:
                of_signals[..., -1] += by_row(self.contexts, np.ascontiguousarray(weights[:, blocks["context"]].T))
        scores = by_candidate(of_item, self._items)
        scores += by_candidate(of_signals, self._signals)
        return scores
