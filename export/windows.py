"""A log cut into what the user model is trained on: windows of events, and the items to foretell from their states.

Windows begin where the running system's do (docs/decisions/0004): the state after n events is that of the events since
start(n), a multiple of half the window. So training sees the same stretches of a history as serving will.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.export.log import Log
from headrace.export.names import GAP_THRESHOLDS

I64 = NDArray[np.int64]

WINDOW = 50
_SHUFFLED_BY = 2  # events: windows of nearly the same length come together in another company each epoch


def window_start(counts: I64, window: int) -> I64:
    """The first event of the window that gives the state after `counts` (n,) events."""
    block = max(1, window // 2)
    return -(-np.maximum(0, counts - window) // block) * block


def gap_buckets(log: Log) -> I64:
    """(E,) the bucket of the time since the user's event before; 0 for his first."""
    gaps = np.diff(log.seconds, prepend=log.seconds[:1])
    gaps[log.offsets[:-1][np.diff(log.offsets) > 0]] = 0
    return np.searchsorted(np.array(GAP_THRESHOLDS), gaps, side="right")


class Windows(NamedTuple):
    """W windows and P pairs, the pairs in order of their windows."""

    first: I64  # (W,) the event of the log with which a window begins
    length: I64  # (W,)
    pairs: I64  # (W+1,) the pairs of window w: pairs[w]:pairs[w+1]
    place: I64  # (P,) the event of the window after which the state is taken
    target: I64  # (P,) the item to foretell from it

    def of(self, windows: I64) -> Pairs:
        """The pairs of these windows (B,)."""
        counts = self.pairs[windows + 1] - self.pairs[windows]
        rows = np.repeat(np.arange(len(windows)), counts)
        which = np.repeat(self.pairs[windows] - (counts.cumsum() - counts), counts) + np.arange(counts.sum())
        return Pairs(rows, self.place[which], self.target[which])


class Tokens(NamedTuple):
    """B windows, side by side; beyond a window's end: -1, -1, 0, 0."""

    items: I64  # (B, L) rows, -1 for an event without an item
    asked: I64  # (B, L) rows of `words`; -1 where there are none, or the event has an item
    types: I64  # (B, L)
    gaps: I64  # (B, L)


def tokens(log: Log, gaps: I64, windows: Windows, chosen: I64) -> Tokens:
    """The events of the windows `chosen` (B,); `gaps` (E,) are the log's gap_buckets."""
    length = windows.length[chosen]
    inside = np.arange(length.max()) < length[:, None]
    events = np.where(inside, windows.first[chosen][:, None] + np.arange(length.max()), 0)
    items = np.where(inside, log.items[events], -1).astype(np.int64)
    asked = np.where(inside & (items < 0), log.asked[events], -1).astype(np.int64)
    types = np.where(inside, log.types[events], 0).astype(np.int64)
    buckets = np.where(inside, gaps[events], 0)
    buckets[:, 0] = 0  # nothing comes before a window
    return Tokens(items, asked, types, buckets)


class Pairs(NamedTuple):
    row: I64  # (p,) row in the batch
    place: I64  # (p,)
    target: I64  # (p,)


def training_windows(log: Log, *, window: int = WINDOW) -> Windows:
    """Every wanted item is to be foretold from the state before the second in which it came.

    An invoice's lines come in one second: each is foretold from what was known before the invoice, and not from
    the lines above it. The user's first second cannot be foretold.
    """
    begins = log.offsets[log.owners]  # (E,) the user's first event
    # The last event before the second of event e: second changes, or the user does.
    new_second = np.ones(len(log.items), np.bool_)
    new_second[1:] = (np.diff(log.seconds) > 0) | (np.diff(begins) > 0)
    before = np.maximum.accumulate(np.where(new_second, np.arange(len(log.items)), 0)) - 1
    events = np.flatnonzero(log.wanted & (before >= begins))
    start = begins[events] + window_start(before[events] - begins[events] + 1, window)
    first, index = np.unique(start, return_inverse=True)
    last = np.zeros(len(first), np.int64)
    np.maximum.at(last, index, before[events])
    order = np.argsort(index, kind="stable")
    events = events[order]
    return Windows(
        first=first,
        length=last - first + 1,
        pairs=np.concatenate([[0], np.bincount(index, minlength=len(first)).cumsum()]),
        place=before[events] - start[order],
        target=log.items[events].astype(np.int64),
    )


def final_windows(log: Log, targets: NDArray[np.int32], *, window: int = WINDOW) -> Windows:
    """For each user who is asked about (targets (U,) ≥ 0): the window after his last event, as one pair."""
    asked = np.flatnonzero((targets >= 0) & (np.diff(log.offsets) > 0))
    counts = np.diff(log.offsets)[asked]
    start = window_start(counts, window)
    return Windows(
        first=log.offsets[asked] + start,
        length=counts - start,
        pairs=np.arange(len(asked) + 1),
        place=counts - start - 1,
        target=targets[asked].astype(np.int64),
    )


def batches(windows: Windows, size: int, random: np.random.Generator | None = None) -> Iterator[I64]:
    """Windows of like length together, so that little is padding; at most `size` events a batch, padding included.

    With `random`, in another order each time.
    """
    length = windows.length.astype(np.float64)
    if random is not None:
        length += random.uniform(0, _SHUFFLED_BY, len(length))
    order = np.argsort(-length, kind="stable")
    made, at = [], 0
    while at < len(order):
        # The first is (nearly) the longest; noise may put one longer by _SHUFFLED_BY behind it.
        longest = int(windows.length[order[at]]) + (0 if random is None else _SHUFFLED_BY)
        made.append(order[at : at + max(1, size // longest)])
        at += len(made[-1])
    if random is not None:
        random.shuffle(made)
    yield from made
