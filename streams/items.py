"""The catalogue as a worker sees it: arrays by row, neighbours by content, what may be recommended now.

Applied between two `interactions` records, never within one. A history names an item's vector by the item's key and the
number of the content that the item had then (contents.py): that content's vector is what `history_vectors` gives.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.export.item_tower import ItemTower
from headrace.streams.attributes import Columns, Words, same
from headrace.streams.contents import Old, content_of
from headrace.streams.index import ItemIndex
from headrace.streams.records import Item, item_key
from headrace.streams.removed import Removed

F32 = NDArray[np.float32]
_NEIGHBOURS = 24  # content neighbours kept an item
_FRESH = 256  # the latest arrivals, from which cold items are drawn
_CHANGED = 8_192  # rows remembered because what rules ask for changed
_MISSED = 1_000_000  # keys remembered because a history named what is not here


class ItemStore:
    """A removed item is not available. It keeps its row until many others have been removed after it (removed.py); then
    the row is another's.

    `tower` gives the items' vectors (d,) in the state's space.
    """

    def __init__(self, tower: ItemTower, *, text_version: str = "", removed: Removed | None = None) -> None:
        """`text_version`: of the text encoder in whose space the tower takes vectors; others' are passed over."""
        self._tower, self._text_version = tower, text_version
        self.dim = tower.dim
        self.ids: list[str] = []
        self.rows: dict[int, int] = {}  # item key -> row
        self._size = 0
        # (source partition, offset, not pending) of the record a row was made from
        self._offsets: list[tuple[int, int, bool]] = []
        self._contents: list[bytes] = []  # by row, contents.content_of
        self._columns = Columns()
        self.changes = 0  # rises with every row added, or of which what rules ask for, or availability, changes
        self._changed: list[int] = []  # the latest rows by which `changes` rose
        self._allocate(1024)
        self.index = ItemIndex(lambda: self.vectors, dim=self.dim)  # of what may be recommended and has a vector
        self._moved: dict[int, None] = {}  # rows whose place in the index is not settled yet
        self._categories: dict[str, int] = {}
        self.category_names: list[str] = []
        self._waiting: dict[int, Item] = {}  # by row: contents whose vector is not yet made
        self._waiting_old: dict[tuple[int, int], Item] = {}  # the same by item key and number
        # item key → number → vector of a content that the item had; they are made to this precision
        self._old: dict[int, dict[int, NDArray[np.float16]]] = {}
        self._last: dict[int, int] = {}  # item key → number of the last content, of removed items without a row
        self._missed: set[int] = set()  # keys that a history named with a content that was not here
        self._stale: set[int] = set()  # keys for which `history_vectors` now gives something else than it gave
        self._texts: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self.fresh: list[int] = []
        self._removed = Removed() if removed is None else removed
        self._left: list[int] = []  # rows without an item, which others may still name as a neighbour
        self._free: list[int] = []  # rows for the next items
        self.freed = 0  # rises when rows become free: who remembers any by number has to ask again
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
        grown("price", (capacity + 1,), np.float64, math.nan)
        grown("since_ms", (capacity + 1,), np.int64, -1)
        grown("category", (capacity + 1,), np.int32, -1)
        grown("available", (capacity + 1,), np.bool_)
        grown("number", (capacity + 1,), np.int64)
        grown("made", (capacity + 1,), np.bool_)
        grown("near", (capacity + 1, _NEIGHBOURS), np.int32, -1)
        grown("near_at", (capacity + 1,), np.int64, -1)
        self._columns.grow(capacity + 1)

    vectors: NDArray[np.float32]
    keys: NDArray[np.uint64]
    log_price: NDArray[np.float32]  # log1p(price), 0 where unknown
    price: NDArray[np.float64]  # NaN where unknown
    since_ms: NDArray[np.int64]  # when the item was first known, 0 by a release that did not say; -1: no item
    category: NDArray[np.int32]  # index into category_names, -1 for none
    available: NDArray[np.bool_]
    number: NDArray[np.int64]  # of the content that `vectors` holds, or is to hold first
    made: NDArray[np.bool_]  # whether `vectors` holds one yet
    near: NDArray[np.int32]
    near_at: NDArray[np.int64]

    def __len__(self) -> int:
        return self._size

    @property
    def none(self) -> int:
        """The row that stands for no item."""
        return self._capacity

    def apply(self, item: Item | Old) -> str | None:
        """Takes one record of `item-vectors`; returns new, changed, removed, or None for an older record."""
        key = item_key(item.item_id)
        if isinstance(item, Old):
            self._take_old(key, item)
            return None
        row = self.rows.get(key)
        at = (item.source, item.offset, not item.pending)
        if row is not None and self._offsets[row][0] == item.source and self._offsets[row] >= at:
            if self._offsets[row] == at and self._encoded_anew(row, item):
                self._contents[row], self._waiting[row], self._moved[row] = content_of(item), item, None
            elif item.removed and key in self._removed:
                self._removed.put(key, row=True)
            return None
        if row is None:
            if item.removed:
                self._last[key] = item.generation
                self._removed.put(key, row=False)
                return None
            row = self._add(item.item_id, key)
            kind = "new"
        else:
            kind = "removed" if item.removed else "changed"
        self._offsets[row] = at
        self._pool = None
        self._moved[row] = None
        if item.removed:
            self._removed.put(key, row=True)
            self._take(row, False, float(self.price[row]), int(self.category[row]), int(self.since_ms[row]))
            return kind
        self._removed.back(key)
        price = math.nan if item.price is None else item.price
        other = self._columns.put(row, item.attributes)
        self._take(row, item.available, price, self._category_code(item.category), item.since_ms, other=other)
        self.log_price[row] = np.log1p(item.price) if item.price is not None and item.price > 0 else 0.0
        content = content_of(item)
        if content and self._fits(item) and (content != self._contents[row] or item.generation != self.number[row]):
            self._contents[row] = content
            self._waiting[row] = item
        elif not self.made[row]:
            self.number[row] = item.generation
        if kind == "new":
            self.fresh = [*self.fresh[-_FRESH + 1 :], row]
        return kind

    def _add(self, item_id: str, key: int) -> int:
        if self._free:
            row = self._free.pop()
            self.ids[row] = item_id
        else:
            if self._size == self._capacity:
                self._allocate(self._capacity * 2)
            row = self._size
            self._size += 1
            self.ids.append(item_id)
            self._offsets.append((-1, -1, False))
            self._contents.append(b"")
        self.rows[key] = row
        self.keys[row] = key
        self._last.pop(key, None)
        return row

    def _let_go(self) -> None:
        """Gives up what the oldest of the removed items held."""
        for key in self._removed.without_row():
            self._empty(key, self.rows.pop(key))
        for key in self._removed.forgotten():
            self._last.pop(key, None)
            if self._old.pop(key, None):
                self._stale.add(key)
        if len(self._left) >= max(self._removed.at_once, self._size // 20):
            named = np.zeros(self._capacity + 1, np.bool_)
            named[self._left] = True
            near, near_at = self.near[: self._size], self.near_at[: self._size]
            near[named[near]] = -1
            near_at[(near_at > 0) & ((near < 0).sum(axis=1) > _NEIGHBOURS // 4)] = 0  # to be looked for anew
            self.fresh = [row for row in self.fresh if not named[row]]
            self._free, self._left = [*self._left[::-1], *self._free], []
            self.freed += 1

    def _empty(self, key: int, row: int) -> None:
        """Histories still find the item's content, as if the worker had come when it was gone already."""
        self._last[key] = int(self.number[row])
        if self.made[row]:
            self._old.setdefault(key, {}).setdefault(int(self.number[row]), self.vectors[row].astype(np.float16))
        other = self._columns.put(row, {})
        self._take(row, False, math.nan, -1, -1, other=other)
        self.ids[row], self._offsets[row], self._contents[row] = "", (-1, -1, False), b""
        self.near[row], self.near_at[row], self.keys[row] = -1, -1, 0
        self.vectors[row], self.number[row], self.made[row], self.log_price[row] = 0, 0, False, 0
        self._left.append(row)

    def _take(self, row: int, available: bool, price: float, category: int, since: int, *, other: bool = False) -> None:
        """`other`: whether anything else that rules ask for changed."""
        if (
            other
            or self.available[row] != available
            or self.category[row] != category
            or self.since_ms[row] != since
            or not same(float(self.price[row]), price)
        ):
            self.changes += 1
            self._changed.append(row)
            if len(self._changed) > 2 * _CHANGED:
                del self._changed[:_CHANGED]
        self.available[row], self.price[row], self.category[row], self.since_ms[row] = available, price, category, since

    def changed_since(self, changes: int) -> NDArray[np.int64] | None:
        """Rows by which `changes` rose from that number on, each once; None where that is too long ago."""
        n = self.changes - changes
        return np.unique(np.array(self._changed[-n:] if n else [], np.int64)) if n <= len(self._changed) else None

    def numbers(self, name: str) -> NDArray[np.float64] | None:
        """(capacity + 1,) `price`, or an attribute that is a number or a boolean (1, 0). NaN: the item has none;
        None: no item has."""
        return self.price if name == "price" else self._columns.numbers.get(name)

    def words(self, name: str) -> Words | None:
        """An attribute that is a word; None: no item has it."""
        return self._columns.words.get(name)

    def _category_code(self, category: str | None) -> int:
        if not category:
            return -1
        code = self._categories.get(category)
        if code is None:
            code = self._categories[category] = len(self.category_names)
            self.category_names.append(category)
        return code

    def _fits(self, content: Item) -> bool:
        """Whether the vector is of the tower's text encoder, as far as the record tells."""
        same = not (content.text_version and self._text_version) or content.text_version == self._text_version
        return same and len(content.vector) in (0, 2 * self._tower.text_dim)

    def _encoded_anew(self, row: int, item: Item) -> bool:
        """Whether this is what the row was made of, now with a vector by the text encoder of this set."""
        content = content_of(item)
        return bool(content) and item.text_version == self._text_version and content != self._contents[row]

    def _take_old(self, key: int, old: Old) -> None:
        if old.content is not None and self._fits(old.content):
            self._waiting_old[key, old.number] = old.content
            return
        self._waiting_old.pop((key, old.number), None)
        held = self._old.get(key, {})
        if held.pop(old.number, None) is not None:
            self._stale.add(key)
        if not held:
            self._old.pop(key, None)

    def settle(self) -> None:
        """Makes and indexes the vectors of what came since the last call."""
        made = self._vectors_of([*self._waiting_old.values(), *self._waiting.values()])
        for (key, number), vector in zip(self._waiting_old, made, strict=False):
            held = self._old.setdefault(key, {})
            self._came(key, another=number in held and not np.array_equal(held[number], vector))
            held[number] = vector.astype(np.float16)
        for (row, item), vector in zip(self._waiting.items(), made[len(self._waiting_old) :], strict=True):
            same_number = bool(self.made[row]) and self.number[row] == item.generation
            self._came(int(self.keys[row]), another=same_number and not np.array_equal(self.vectors[row], vector))
            self.vectors[row], self.number[row], self.made[row] = vector, item.generation, True
        self._index(changed=set(self._waiting))
        self._waiting.clear()
        self._waiting_old.clear()
        self._let_go()

    def _came(self, key: int, *, another: bool) -> None:
        if another or key in self._missed:
            self._missed.discard(key)
            self._stale.add(key)

    def _vectors_of(self, contents: list[Item]) -> F32:
        """(N, d), to float16's precision as records of decisions carry them: what was scored can be scored again."""
        if not contents:
            return np.zeros((0, self.dim), np.float32)
        texts = np.zeros((len(contents), self._tower.text_dim), np.float32)
        for row, item in zip(texts, contents, strict=True):
            row[: len(item.vector) // 2] = np.frombuffer(item.vector, np.float16)
        made = self._tower.vectors(
            texts,
            keys=np.array([item_key(item.item_id) for item in contents], np.uint64),
            categories=[item.category for item in contents],
            prices=np.array([np.nan if item.price is None else item.price for item in contents], np.float32),
        )
        return made.astype(np.float16).astype(np.float32)

    def take_stale(self) -> set[int]:
        """Item keys for which `history_vectors` gives something else than before, since the last call."""
        stale, self._stale = self._stale, set()
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

    def generation(self, key: int) -> int:
        """The number, modulo 256, of the content by which an item enters a history now."""
        row = self.rows.get(key)
        return (self._last.get(key, 0) if row is None else int(self.number[row])) & 255

    def history_vectors(self, keys: NDArray[np.uint64], generations: NDArray[np.uint8]) -> F32:
        """Vectors (n, d) of history entries.

        Where a content is not here (dropped, or yet to come) its oldest that is stands in, or zeros.
        """
        rows = self.rows_of(keys.tolist())
        vectors = self.vectors[rows]
        for place in np.flatnonzero(~self.current(rows, generations)).tolist():
            vectors[place] = self._earlier(int(keys[place]), int(generations[place]), int(rows[place]))
        return vectors

    def current(self, rows: NDArray[np.int64], generations: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether the items' contents of now are the ones by which they entered histories."""
        same: NDArray[np.bool_] = self.made[rows] & ((self.number[rows] & 255) == generations)
        return same

    def _earlier(self, key: int, generation: int, row: int) -> F32:
        """The vector of a content that is not the one of now."""
        held = self._old.get(key, {})
        for number, vector in held.items():
            if number & 255 == generation:
                return vector.astype(np.float32)
        if len(self._missed) >= _MISSED:
            self._stale |= self._missed
            self._missed.clear()
        self._missed.add(key)
        here = {number: vector.astype(np.float32) for number, vector in held.items()}
        if self.made[row]:
            here[int(self.number[row])] = self.vectors[row]
        return here[min(here)] if here else np.zeros(self.dim, np.float32)

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

    def asked_for(self) -> NDArray[np.uint64]:
        """Keys of the items whose neighbours somebody has asked for. Any thread may ask, while the store grows."""
        size = self._size
        found: NDArray[np.uint64] = self.keys[:size][self.near_at[:size] >= 0]
        return found

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
