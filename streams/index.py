"""The nearest items to a vector: exact while the catalogue is small, by a graph above; it changes as items do.

Only items that may be recommended are held, so that nothing found has to be dropped. Answers are a function of the
calls before: the same puts and removals in the same order give the same answers, bit for bit, whatever is asked
together. Below `EXACT_BELOW` items even the order does not matter but between items of one and the same score. A graph
built in another order, as after a restart, may miss other items: docs/retrieval.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401  # loaded after usearch (2.26), its start crashes the process
from numpy.typing import NDArray
from usearch.index import Index

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

EXACT_BELOW = 5_000  # items: above, a graph is faster than one matrix product (benchmarks/retrieval.py)
_AT_ONCE = 8  # vectors in one matrix product, padded with zeros: a row's bits must not depend on how many there are
_BLOCK = 1_024  # items in one matrix product
_GROUP = 32  # items of which only the best is looked at in the first pass
_WIDTH = 64  # items that a search of the graph keeps in view, at least: else three times as many as are asked for
_CHECK_EVERY = 4_096  # searches of a graph, one of which is held against an exact one
_CHECKS = 64  # how many of these the recall that is told is a mean of, by and large


class ItemIndex:
    """Items by row number with vectors (d,) of length ≤ 1; near is what has a large inner product."""

    def __init__(self, vectors: Callable[[], F32], *, dim: int, exact_below: int = EXACT_BELOW) -> None:
        """`vectors` gives the (≥ rows, d) vectors of all items by row, as they were put."""
        self._vectors = vectors
        self._dim = dim
        self._exact_below = exact_below
        self._held = np.zeros(1_024, np.bool_)  # by row
        self._size = 0
        self._dense: _Dense | None = _Dense(dim)
        # Levels are drawn from a seeded generator, and one thread adds: the same calls make the same graph.
        self._graph: Any = Index(ndim=dim, metric="ip", dtype="f16", connectivity=16, expansion_add=_WIDTH)
        self._owed: dict[int, None] = {}  # rows that are not in the graph yet
        self._asked = 0
        self._recall: float | None = None

    def __len__(self) -> int:
        return self._size

    def __contains__(self, row: int) -> bool:
        return row < len(self._held) and bool(self._held[row])

    @property
    def exact(self) -> bool:
        """Whether searches are exact: false from the moment that there were `exact_below` items."""
        return self._dense is not None

    @property
    def recall(self) -> float:
        """Share of the truly nearest that searches found: 1 while they are exact, else a running mean of samples."""
        return 1.0 if self._recall is None else self._recall

    def put(self, rows: I64, vectors: F32) -> None:
        """Adds items, or replaces them where they are held: different rows (n,), vectors (n, d)."""
        if not len(rows):
            return
        if int(rows.max()) >= len(self._held):
            self._held = np.concatenate([self._held, np.zeros(int(rows.max()) + 1, np.bool_)])
        self.remove(rows[self._held[rows]])
        self._held[rows] = True
        self._size += len(rows)
        if self._dense is None:
            self._graph.add(rows.astype(np.uint64), vectors, threads=1)
            return
        self._dense.put(rows, vectors)
        self._owed.update(dict.fromkeys(rows.tolist()))
        self._pay(2 * len(rows))

    def _pay(self, count: int) -> None:
        """From half the size on every item brings an older one into the graph: whole when it is needed, and no pause
        for building it."""
        dense = self._dense
        assert dense is not None
        if 2 * self._size < self._exact_below:
            return
        last = self._size >= self._exact_below
        paid = np.array(list(self._owed)[: None if last else count], np.int64)
        if len(paid):
            self._graph.add(paid.astype(np.uint64), dense.vectors[dense.places(paid)], threads=1)
        for row in paid.tolist():
            del self._owed[row]
        if last:
            self._dense = None

    def remove(self, rows: I64) -> None:
        """Rows (n,); what is not held is left alone."""
        rows = rows[rows < len(self._held)]
        rows = rows[self._held[rows]]
        if not len(rows):
            return
        self._held[rows] = False
        self._size -= len(rows)
        if self._dense is not None:
            self._dense.remove(rows)
        for row in rows.tolist():
            if row in self._owed:
                del self._owed[row]
            elif len(self._graph):
                self._graph.remove(row)

    def search(self, queries: F32, k: int) -> I64:
        """Rows (B, k) nearest to vectors (B, d), best first; -1 where there are fewer items."""
        found = np.full((len(queries), k), -1, np.int64)
        k = min(k, self._size)
        if not k or not len(queries):
            return found
        if self._dense is not None:
            for start in range(0, len(queries), _AT_ONCE):
                part = queries[start : start + _AT_ONCE]
                found[start : start + len(part), :k] = self._dense.search(part, k)
            return found
        self._graph.expansion_search = max(_WIDTH, 3 * k)
        matches: Any = self._graph.search(np.ascontiguousarray(queries), k, threads=1)
        keys = np.asarray(matches.keys, np.uint64).reshape(len(queries), -1).astype(np.int64)
        counts = np.asarray(getattr(matches, "counts", keys.shape[1])).reshape(-1, 1)
        found[:, : keys.shape[1]] = np.where(np.arange(keys.shape[1]) < counts, keys, -1)
        self._sample(queries, found[:, :k])
        return found

    def _sample(self, queries: F32, found: I64) -> None:
        before, self._asked = self._asked, self._asked + len(queries)
        if before // _CHECK_EVERY == self._asked // _CHECK_EVERY and self._recall is not None:
            return
        share = recall(found[:1], self.exactly(queries[:1], found.shape[1]))
        old = share if self._recall is None else self._recall
        self._recall = old + (share - old) / _CHECKS

    def exactly(self, queries: F32, k: int) -> I64:
        """As `search`, by looking at every item, whatever the size: what searches are measured by."""
        held = np.flatnonzero(self._held)
        vectors = self._vectors()
        found = np.full((len(queries), k), -1, np.int64)
        k = min(k, len(held))
        for i, query in enumerate(queries):
            scores = (vectors[: len(self._held)] @ query)[held]
            best = np.argpartition(-scores, k - 1)[:k] if k else held[:0]
            found[i, :k] = held[best[np.argsort(-scores[best], kind="stable")]]
        return found


def recall(found: I64, truth: I64) -> float:
    """Share of the true rows (B, k) that were found (B, k); -1 stands for nothing."""
    hits = sum(len(np.intersect1d(f[f >= 0], t[t >= 0])) for f, t in zip(found, truth, strict=True))
    return hits / max(1, int((truth >= 0).sum()))


class _Dense:
    """Items in one matrix without gaps: a removed one's place is taken by the last."""

    def __init__(self, dim: int) -> None:
        self.vectors = np.zeros((_BLOCK, dim), np.float32)
        self._rows = np.zeros(_BLOCK, np.int64)
        self._places: dict[int, int] = {}

    def places(self, rows: I64) -> I64:
        return np.array([self._places[row] for row in rows.tolist()], np.int64)

    def put(self, rows: I64, vectors: F32) -> None:
        """Rows that are not held."""
        first, last = len(self._places), len(self._places) + len(rows)
        if last > len(self.vectors):
            more = -(-max(last, 2 * len(self.vectors)) // _BLOCK) * _BLOCK - len(self.vectors)
            self.vectors = np.concatenate([self.vectors, np.zeros((more, self.vectors.shape[1]), np.float32)])
            self._rows = np.concatenate([self._rows, np.zeros(more, np.int64)])
        self.vectors[first:last], self._rows[first:last] = vectors, rows
        self._places.update(zip(rows.tolist(), range(first, last), strict=True))

    def remove(self, rows: I64) -> None:
        for row in rows.tolist():
            place, last = self._places.pop(row), len(self._places)
            if place != last:
                self.vectors[place], self._rows[place] = self.vectors[last], self._rows[last]
                self._places[int(self._rows[place])] = place

    def search(self, queries: F32, k: int) -> I64:
        """Rows (B, k) of at most 8 vectors, best first, ties to the lower row; k is at most the number of items."""
        size = len(self._places)
        blocks = -(-size // _BLOCK)
        padded = np.zeros((_AT_ONCE, queries.shape[1]), np.float32)
        padded[: len(queries)] = queries
        scores = np.empty((_AT_ONCE, blocks * _BLOCK), np.float32)
        for start in range(0, blocks * _BLOCK, _BLOCK):
            np.matmul(padded, self.vectors[start : start + _BLOCK].T, out=scores[:, start : start + _BLOCK])
        scores = scores[: len(queries)]
        scores[:, size:] = -np.inf
        places = _best(scores, k, size)
        rows, found = self._rows[places], np.take_along_axis(scores, places, axis=1)
        return np.take_along_axis(rows, np.lexsort((rows, -found)), axis=1)


def _best(scores: F32, k: int, size: int) -> I64:
    """Columns (B, k) of the k largest a row among the first `size`, in any order.

    The k largest lie in the k groups with the largest maxima; only those are sorted out, which takes a fifth of the
    time.
    """
    batch, width = scores.shape
    groups = width // _GROUP
    if size <= 2 * _GROUP * k:
        return np.argpartition(scores[:, :size], size - k, axis=1)[:, size - k :]
    largest = scores.reshape(batch, _GROUP, groups).max(axis=1)
    chosen = np.argpartition(largest, groups - k, axis=1)[:, groups - k :]
    columns = (chosen[:, None, :] + groups * np.arange(_GROUP)[:, None]).reshape(batch, -1)
    inner = np.argpartition(np.take_along_axis(scores, columns, axis=1), columns.shape[1] - k, axis=1)[:, -k:]
    return np.take_along_axis(columns, inner, axis=1)
