"""The catalogue as a worker sees it: arrays by row, neighbours by content, what may be recommended now.

Applied between two `interactions` records, never within one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.streams.index import ItemIndex
from headrace.streams.records import Item, item_key

_NEIGHBOURS = 24  # content neighbours kept an item
_FRESH = 256  # the latest arrivals, from which cold items are drawn


class ItemStore:
    """Rows are permanent while the process lives: a removed item keeps its row and is not available.

    `project` turns text vectors (N, text_dim) into unit rows of the state's space (N, d).
    """

    def __init__(self, project: Callable[[NDArray[np.float32]], NDArray[np.float32]], *, dim: int) -> None:
        self._project = project
        self.dim = dim
        self.ids: list[str] = []
        self.rows: dict[int, int] = {}  # item key -> row
        self._size = 0
        # (source partition, offset, not pending) of the record a row was made from
        self._offsets: list[tuple[int, int, bool]] = []
        self._hashes: list[str] = []
        self._allocate(1024)
        self.index = ItemIndex(lambda: self.vectors, dim=dim)  # of what may be recommended and has a vector
        self._moved: dict[int, None] = {}  # rows whose place in the index is not settled yet
        self._categories: dict[str, int] = {}
        self.category_names: list[str] = []
        self._waiting: dict[int, NDArray[np.float32]] = {}  # rows whose text vector is not yet projected
        self._missed: set[int] = set()  # keys that a history named before the item came
        self._texts: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self.fresh: list[int] = []
        self._pool: NDArray[np.int64] | None = None

    def _allocate(self, capacity: int) -> None:
        def grown(name: str, shape: tuple[int, ...], dtype: type[Any], fill: float = 0) -> None:
            new: NDArray[Any] = np.full(shape, fill, dtype)
            if self._size:
                new[: self._size] = getattr(self, name)[: self._size]
            setattr(self, name, new)

        self._capacity = capacity
        # the last row stands for "no item": zeros, never available
        grown("vectors", (capacity + 1, self.dim), np.float32)
        grown("keys", (capacity + 1,), np.uint64)
        grown("log_price", (capacity + 1,), np.float32)
        grown("category", (capacity + 1,), np.int32, -1)
        grown("available", (capacity + 1,), np.bool_)
        grown("near", (capacity + 1, _NEIGHBOURS), np.int32, -1)
        grown("near_at", (capacity + 1,), np.int64, -1)

    vectors: NDArray[np.float32]
    keys: NDArray[np.uint64]
    log_price: NDArray[np.float32]  # log1p(price), 0 where unknown
    category: NDArray[np.int32]  # index into category_names, -1 for none
    available: NDArray[np.bool_]
    near: NDArray[np.int32]
    near_at: NDArray[np.int64]

    def __len__(self) -> int:
        return self._size

    @property
    def none(self) -> int:
        """The row that stands for no item."""
        return self._capacity

    def apply(self, item: Item) -> str | None:
        """Takes one record of `item-vectors`; returns new, changed, removed, or None for an older record."""
        key = item_key(item.item_id)
        row = self.rows.get(key)
        at = (item.source, item.offset, not item.pending)
        if row is not None and self._offsets[row][0] == item.source and self._offsets[row] >= at:
            return None
        if row is None:
            if item.removed:
                return None
            row = self._add(item.item_id, key)
            kind = "new"
        else:
            kind = "removed" if item.removed else "changed"
        self._offsets[row] = at
        self._pool = None
        self._moved[row] = None
        if item.removed:
            self.available[row] = False
            return kind
        self.available[row] = item.available
        self.log_price[row] = np.log1p(item.price) if item.price is not None and item.price > 0 else 0.0
        self.category[row] = self._category_code(item.category)
        if item.vector_hash != self._hashes[row] and not item.pending:
            self._hashes[row] = item.vector_hash
            self._waiting[row] = np.frombuffer(item.vector, np.float16).astype(np.float32)
        if kind == "new":
            self.fresh = [*self.fresh[-_FRESH + 1 :], row]
        return kind

    def _add(self, item_id: str, key: int) -> int:
        if self._size == self._capacity:
            self._allocate(self._capacity * 2)
        row = self._size
        self._size += 1
        self.ids.append(item_id)
        self.rows[key] = row
        self.keys[row] = key
        self._offsets.append((-1, -1, False))
        self._hashes.append("")
        return row

    def _category_code(self, category: str | None) -> int:
        if not category:
            return -1
        code = self._categories.get(category)
        if code is None:
            code = self._categories[category] = len(self.category_names)
            self.category_names.append(category)
        return code

    def settle(self) -> bool:
        """Projects and indexes what came since the last call.

        Returns True where a vector that histories may have used has changed: cached user states are then stale.
        """
        stale = False
        rows = [r for r, v in self._waiting.items() if len(v)]
        for row, vector in self._waiting.items():
            if not len(vector):
                self.vectors[row] = 0
        if rows:
            projected = self._project(np.stack([self._waiting[r] for r in rows]))
            for row, vector in zip(rows, projected, strict=True):
                if self.vectors[row].any() or int(self.keys[row]) in self._missed:
                    stale = True
                    self._missed.discard(int(self.keys[row]))
                # As records of decisions carry it: what was scored can be scored again from them, exactly.
                self.vectors[row] = vector.astype(np.float16)
        self._index(changed=set(self._waiting))
        self._waiting.clear()
        return stale

    def _index(self, *, changed: set[int]) -> None:
        """The index holds what may be recommended and has a direction; `changed` are rows with another vector."""
        if not self._moved:
            return
        moved = np.array(list(self._moved), np.int64)
        held = self.available[moved] & self.vectors[moved].any(axis=1)
        self.index.remove(moved[~held])
        new = np.array([row in changed or row not in self.index for row in moved.tolist()], np.bool_)
        self.index.put(moved[held & new], self.vectors[moved[held & new]])
        self._moved.clear()
        self._texts.clear()

    def rows_of(self, keys: list[int]) -> NDArray[np.int64]:
        """Rows of item keys; `none` where the item is unknown."""
        none = self.none
        get = self.rows.get
        return np.array([get(k, none) for k in keys], np.int64)

    def history_vectors(self, keys: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Vectors (len, d) of history entries; zeros for items unknown so far, which are remembered as missed."""
        rows = self.rows_of(keys.tolist())
        missing = rows == self.none
        if missing.any() and len(self._missed) < 1_000_000:
            self._missed.update(keys[missing].tolist())
        return self.vectors[rows]

    def neighbours(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Content neighbours (len(rows), 24) of items by row, -1 where there are fewer. Refreshed as the catalogue
        grows."""
        indexed = len(self.index)
        wanted = np.unique(rows[rows != self.none])
        at = self.near_at[wanted]
        stale = wanted[(at < 0) | (at * 10 < indexed * 9)]
        stale = stale[self.vectors[stale].any(axis=1)]
        if len(stale) and indexed:
            found = self.index.search(self.vectors[stale], _NEIGHBOURS + 1)
            for i, row in enumerate(stale):
                others = found[i][(found[i] != row) & (found[i] >= 0)][:_NEIGHBOURS]
                self.near[row] = -1
                self.near[row, : len(others)] = others
            self.near_at[stale] = indexed
        return self.near[rows]

    def nearest(self, key: int, vector: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Rows nearest to a query's vector (d,), best first; cached by the query's key."""
        found = self._texts.get(key)
        if found is None:
            if not len(self.index) or not vector.any():
                return np.zeros(0, np.int64)
            found = self.index.search(vector[None], count)[0]
            found = self._texts[key] = found[found >= 0]
            if len(self._texts) > 4096:
                self._texts.popitem(last=False)
        return found[:count]

    def pool(self) -> NDArray[np.int64]:
        """Rows that may be recommended now."""
        if self._pool is None:
            self._pool = np.flatnonzero(self.available[: self._size])
        return self._pool
