"""What the encoder is trained on, as arrays alone: a catalogue, and what each user did, oldest first. Without torch.

    Log.of(users=["ann", "bob", "ann"], items=[0, 3, 1], types=…, seconds=…, keys=…, texts=…)    events in any order
    log.without({"bob"})                  as if he had never come
    leave_one_out(log), temporal(log)     histories, and the item that comes next in each

N = items, T = text_dim, Q = texts that users wrote, U = users, E = events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.export.errors import ExportError
from headrace.export.names import N_TYPE_CODES, type_code

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

UNWANTED = ("dismiss", "remove_from_cart", "return", "impression")
"""Event types that do not say "this is what he wanted next": a part of a history, never the item to foretell."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """Raises ValueError, one line, where shapes disagree, an index leads nowhere or a user's events are in disorder."""

    keys: NDArray[np.uint64]  # (N,) records.item_key of the items' ids; no key twice
    texts: F32  # (N, T) the fused unit vector of an item's words and the shop's own; zeros for none. T may be 0
    categories: Sequence[str | None] = ()  # (N,) paths, or none at all
    prices: F32 = field(default_factory=lambda: np.zeros(0, np.float32))  # (N,) NaN for unknown, or none at all
    words: F32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (Q, T) vectors of searches, comments, …
    users: Sequence[str]  # (U,) whose events they are
    offsets: I64  # (U+1,) the events of user u: offsets[u]:offsets[u+1]
    items: I32  # (E,) row of the item, -1 for an event without
    asked: I32  # (E,) row in `words`, -1 for an event without
    types: NDArray[np.uint8]  # (E,) names.type_code
    seconds: I64  # (E,) Unix time; ordinals 0, 1, 2, … where a log has no times
    values: F32  # (E,) the price, the rating, the seconds; NaN where there is none

    def __post_init__(self) -> None:
        n, u, e = len(self.keys), len(self.users), len(self.items)
        columns = [len(self.asked), len(self.types), len(self.seconds), len(self.values)]
        if self.texts.ndim != 2 or len(self.texts) != n:
            raise ValueError(f"log: {n} item keys, texts {self.texts.shape}: one vector an item is needed")
        if len(self.categories) not in (0, n) or len(self.prices) not in (0, n):
            raise ValueError(f"log: {n} items, {len(self.categories)} categories, {len(self.prices)} prices")
        if len(self.words) and self.words.shape[1:] != (self.text_dim,):
            raise ValueError(f"log: words {self.words.shape} are not of the items' text space of {self.text_dim}")
        if len(np.unique(self.keys)) != n:
            raise ValueError("log: an item key occurs twice")
        if len(self.offsets) != u + 1 or self.offsets[0] != 0 or self.offsets[-1] != e:
            raise ValueError(f"log: offsets do not cut {e} events among {u} users")
        if columns != [e] * 4:
            raise ValueError(f"log: columns of {[e, *columns]} events")
        if (np.diff(self.offsets) < 0).any():
            raise ValueError("log: offsets fall")
        for name, column, end in (("items", self.items, n), ("asked", self.asked, len(self.words))):
            if e and (column.min() < -1 or column.max() >= end):
                raise ValueError(f"log: {name} holds a row outside -1 … {end - 1}")
        if e and self.types.max() >= N_TYPE_CODES:
            raise ValueError(f"log: a type code of {self.types.max()}, they end at {N_TYPE_CODES - 1}")
        earlier = np.diff(self.seconds) < 0
        starts = self.offsets[1:-1]
        earlier[starts[(starts > 0) & (starts < e)] - 1] = False  # the next user may begin earlier
        if earlier.any():
            raise ValueError("log: a user's events are not in order of time; Log.of sorts them")

    @classmethod
    def of(
        cls,
        *,
        users: Sequence[str] | NDArray[np.str_],
        items: ArrayLike,
        keys: ArrayLike,
        texts: F32,
        types: ArrayLike | None = None,
        seconds: ArrayLike | None = None,
        values: ArrayLike | None = None,
        asked: ArrayLike | None = None,
        words: F32 | None = None,
        categories: Sequence[str | None] = (),
        prices: ArrayLike = (),
        erased: Container[str] = frozenset(),
    ) -> Log:
        """From events in any order: `users` (E,) ids, the other columns (E,) as above.

        Without `types` every event is a view; without `seconds` the order given is the order of time. Events of the
        same user and second keep the order given. Events of users in `erased` are left out.
        """
        names = np.asarray(users, dtype=np.str_)
        distinct, owner = np.unique(names, return_inverse=True)
        n = len(names)
        at = np.zeros(0, np.int64) if seconds is None else np.asarray(seconds, np.int64)
        order = np.argsort(owner, kind="stable") if seconds is None else np.lexsort((at, owner))
        if seconds is None:
            at = np.empty(n, np.int64)
            counts = np.bincount(owner, minlength=len(distinct))
            at[order] = np.arange(n) - np.repeat(counts.cumsum() - counts, counts)

        def column(given: ArrayLike | None, default: float, dtype: Any) -> NDArray[Any]:
            return (np.full(n, default, dtype) if given is None else np.asarray(given, dtype))[order]

        log = cls(
            keys=np.asarray(keys, np.uint64),
            texts=np.asarray(texts, np.float32),
            categories=tuple(categories),
            prices=np.asarray(prices, np.float32),
            words=np.zeros((0, 0), np.float32) if words is None else np.asarray(words, np.float32),
            users=tuple(distinct.tolist()),
            offsets=np.concatenate([[0], np.bincount(owner, minlength=len(distinct)).cumsum()]).astype(np.int64),
            items=column(items, -1, np.int32),
            asked=column(asked, -1, np.int32),
            types=column(types, type_code("view"), np.uint8),
            seconds=at[order],
            values=column(values, np.nan, np.float32),
        )
        return log.without(erased)

    @property
    def text_dim(self) -> int:
        return int(self.texts.shape[1])

    @property
    def owners(self) -> I64:
        """(E,) the row of the user whose event it is."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.offsets))

    @property
    def wanted(self) -> Bools:
        """(E,) events that a model may be asked to foretell: of an item, and of no type in UNWANTED."""
        unwanted = [type_code(name) for name in UNWANTED]
        found: Bools = (self.items >= 0) & ~np.isin(self.types, unwanted)
        return found

    def without(self, users: Container[str]) -> Log:
        """The log as if these users had never come; the catalogue stays."""
        stays = np.array([user not in users for user in self.users], np.bool_)
        if stays.all():
            return self
        kept = self._only(np.repeat(stays, np.diff(self.offsets)))
        counts = np.diff(kept.offsets)[stays]
        names = tuple(user for user, stay in zip(self.users, stays, strict=True) if stay)
        return replace(kept, users=names, offsets=np.concatenate([[0], counts.cumsum()]).astype(np.int64))

    def without_items(self, rows: Iterable[int]) -> Log:
        """Without the events of these items. The catalogue keeps its rows: such an item is one nobody has met yet."""
        return self._only(~np.isin(self.items, np.fromiter(rows, np.int32)))

    def before(self, second: int) -> Log:
        """What had happened before `second`. Users keep their rows, also those who had not come yet."""
        return self._only(self.seconds < second)

    def without_last(self, n: int = 1) -> Log:
        """Without each user's last `n` wanted events and all that came after them. Users keep their rows."""
        upto = self.wanted.cumsum()  # wanted events of the log, this one included
        through = np.concatenate([[0], upto])[self.offsets[1:]]
        return self._only(upto <= through[self.owners] - n)

    def fingerprint(self) -> str:
        """`sha256:…` of all that a model could learn from; users count by what they did, not by their names."""
        digest = hashlib.sha256()
        for array in (self.keys, self.texts, self.prices, self.words, self.offsets, self.items, self.asked, self.types,
                      self.seconds, self.values):  # fmt: skip
            digest.update(f"{array.dtype.str} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr(list(self.categories)).encode())
        return "sha256:" + digest.hexdigest()

    def _only(self, keep: Bools) -> Log:
        counts = np.concatenate([[0], keep.cumsum()])[self.offsets]
        return replace(
            self, offsets=counts.astype(np.int64), items=self.items[keep], asked=self.asked[keep],
            types=self.types[keep], seconds=self.seconds[keep], values=self.values[keep],
        )  # fmt: skip


class Split(NamedTuple):
    """Histories, and what comes next in each."""

    history: Log  # users keep their rows
    targets: I32  # (U,) row of the item that comes next, -1 for a user who is not asked about


def leave_one_out(log: Log) -> Split:
    """The last wanted item of every user who did something before it, and all that came before it."""
    history = log.without_last()
    wanted = np.flatnonzero(log.wanted)
    targets = np.full(len(log.users), -1, np.int32)
    targets[log.owners[wanted]] = log.items[wanted]  # the last one written stays
    targets[np.diff(history.offsets) == 0] = -1
    return Split(history, targets)


def temporal(log: Log, *, share: float = 0.1) -> Split:
    """All before the moment after which lie `share` of the wanted events; asked is each user's first wanted after it.

    Users without a history at that moment are not asked about. Raises ValueError for a log without two moments.
    """
    wanted = np.flatnonzero(log.wanted)
    if len(wanted) == 0:
        raise ExportError("log: no event of an item that somebody wanted")
    moment = int(np.quantile(log.seconds[wanted], 1 - share, method="higher"))
    history = log.before(moment)
    if len(history.items) == 0:
        raise ExportError("log: all events are of one moment, a split in time needs two")
    late = wanted[log.seconds[wanted] >= moment][::-1]
    targets = np.full(len(log.users), -1, np.int32)
    targets[log.owners[late]] = log.items[late]  # backwards: the first one stays
    targets[np.diff(history.offsets) == 0] = -1
    return Split(history, targets)
